extension Instruction {
  /// The registers of a kernel that the instruction reads, and those that it writes. Constants are none.
  public func registers(in kernel: Kernel) -> (read: [RegisterID], written: [RegisterID]) {
    func read(_ operands: Operand?...) -> [RegisterID] {
      operands.compactMap { if case .register(let register) = $0 { register } else { nil } }
    }
    switch self {
    case .arithmetic(let instruction):
      switch instruction {
      case .binary(_, _, let d, let a, let b), .multiplyWide(_, let d, let a, let b),
        .compare(_, _, let d, let a, let b):
        return (read(a, b), [d])
      case .multiplyAdd(_, let d, let a, let b, let c), .permute(let d, let a, let b, let c),
        .logic3(let d, let a, let b, let c, _):
        return (read(a, b, c), [d])
      case .unary(_, _, let d, let a), .move(_, let d, let a): return (read(a), [d])
      case .select(_, let d, let a, let b, let p): return (read(a, b) + [p], [d])
      case .readSpecial(_, let d): return ([], [d])
      case .pack(let d, let low, let high): return ([low, high], [d])
      case .unpack(let low, let high, let a): return ([a], [low, high])
      }
    case .conversion(let instruction):
      switch instruction {
      case .pack16(_, let d, let low, let high), .packE4M3(let d, let low, let high): return (read(low, high), [d])
      case .floatFromF16(let d, let a), .f16x2FromE4M3x2(let d, let a), .globalAddress(let d, let a): return ([a], [d])
      case .f16FromFloat(let d, let a), .bf16FromFloat(let d, let a), .floatFromInteger(_, let d, let a),
        .integerFromFloat(_, _, let d, let a), .widen(_, let d, let a), .narrow(let d, let a):
        return (read(a), [d])
      }
    case .memory(let instruction):
      switch instruction {
      case .load(_, _, _, _, let d, let address, _): return ([address], d.all)
      case .store(_, _, _, let values, let address, _), .add(let values, let address, _):
        return (values.all + [address], [])
      case .loadParameter(_, let d), .sharedAddress(_, let d), .tensorMapAddress(_, let d): return ([], [d])
      }
    case .atomic(let operation):
      return ([operation.address] + read(operation.value, operation.expected), [operation.d])
    case .asynchronousCopy(let instruction):
      switch instruction {
      case .copy(_, let destination, _, let source, _, let bytes): return ([destination, source] + read(bytes), [])
      case .commit, .waitGroup: return ([], [])
      }
    case .bulkCopy(let instruction):
      switch instruction {
      case .loadTensor(let map, let coordinates, let destination, let barrier, let multicast, let policy):
        return ([map, destination, barrier] + kernel[coordinates] + [multicast, policy].compactMap { $0 }, [])
      case .storeTensor(let map, let coordinates, let source, let policy):
        return ([map, source] + kernel[coordinates] + [policy].compactMap { $0 }, [])
      case .addTensor(let map, let coordinates, let source): return ([map, source] + kernel[coordinates], [])
      case .load(let byteCount, let source, let destination, let barrier, let multicast):
        return ([source, destination, barrier] + read(byteCount) + [multicast].compactMap { $0 }, [])
      case .store(let byteCount, let source, let destination), .add(let byteCount, let source, let destination):
        return ([source, destination] + read(byteCount), [])
      case .commit, .waitGroup: return ([], [])
      case .prefetchMap(let map): return ([map], [])
      case .makePolicy(_, let d): return ([], [d])
      }
    case .transactionBarrier(let instruction):
      switch instruction {
      case .initialize(let address, _, let operand), .arriveExpecting(let address, _, let operand),
        .expect(let address, _, let operand):
        return ([address] + read(operand), [])
      case .arrive(let address, _), .arriveAfterCopies(let address, _): return ([address], [])
      case .tryWait(let d, let address, _, let parity): return ([address] + read(parity), [d])
      }
    case .matrix(let instruction):
      switch instruction {
      case .load(_, let d, let address, _): return ([address], d.all)
      case .store(_, let values, let address, _): return (values.all + [address], [])
      case .multiplyAdd(_, _, let d, let a, let b, let c): return (a.all + b.all + c.all, d.all)
      }
    case .warpgroup(let instruction):
      guard case .multiplyAdd(let product) = instruction else { return ([], []) }
      var all = [product.b]
      switch product.a {
      case .shared(let descriptor, _): all.append(descriptor)
      case .registers(let group): all += group.all
      }
      if case .when(let predicate) = product.sum { all.append(predicate) }
      return (all, kernel[product.d])
    case .warp(let instruction):
      switch instruction {
      case .shuffle(_, let d, let a, let lane, _): return ([a] + read(lane), [d])
      case .vote(_, let d, let p), .ballot(let d, let p): return ([p], [d])
      case .elect(let d): return ([], [d])
      }
    case .synchronization(let instruction):
      switch instruction {
      case .barrier(let id, _), .arrive(let id, _): return (read(id), [])
      case .warpBarrier, .fence, .proxyFence, .barrierInitializationFence, .clusterArrive, .clusterWait,
        .launchDependents, .waitForPrerequisites:
        return ([], [])
      }
    case .control: return ([], [])
    }
  }
}
