internal import PTX

extension Machine {
  /// What a descriptor is read as.
  struct OperandPlace: Hashable {
    let descriptor: UInt64
    let rows: Int
    let isTransposed: Bool
    let depth: Int
  }

  func execute(_ instruction: WarpgroupMatrix, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    try requireWholeWarp(mask, warp, block)
    let state = warp.asynchronous!
    switch instruction {
    case .fence: state.fence = state.time
    case .commit:
      try checkGroup(warp, block)
      try log(GroupLog.Step(operation: Int32(current)), warp, block)
      state.productGroups += 1
    case .wait(let pending):
      let awaited = state.products.prefix { $0.group < state.productGroups - Int32(pending) }.count
      for product in state.products.prefix(awaited) { finish(product, warp, block) }
      state.products.removeFirst(awaited)
      markBusy(state)
      // All lanes know that these products have ended.
      warp.view[program.products(of: warp.index)].raise(to: warp.clock)
      warp.clock += 1
    case .multiplyAdd(let product): try issue(product, warp, block)
    }
  }

  /// A group of four warps is whole.
  func checkGroup(_ warp: Warp, _ block: Block) throws(Hazard) {
    if warp.index / 4 < block.groupLogs.count { return }
    throw hazard(
      .divergence, "a block of \(program.warpCount) warps has a group of four that is not whole", warp, block)
  }

  /// Ordinary instructions must leave registers alone that products under way use; when they last did not is kept, because
  /// products need a fence behind it.
  func checkRegisters(_ instruction: Instruction, _ warp: Warp, _ block: Block) throws(Hazard) {
    let state = warp.asynchronous!
    state.time += 1
    if case .warpgroup = instruction { return }
    for register in program.touchedRegisters[current] {
      if state.busy[Int(register)] != 0 {
        let isSum = state.busy[Int(register)] & 1 != 0
        throw hazard(
          .registersUnderWay,
          "register %\(program.kernel.registers[Int(register)].name) is \(isSum ? "a sum" : "an operand") of a wgmma that "
            + "nobody has waited for", warp, block)
      }
      state.accesses[Int(register)] = state.time
    }
  }

  private func markBusy(_ state: AsynchronousState) {
    for index in state.busy.indices { state.busy[index] = 0 }
    for other in state.products {
      for register in program.kernel[other.product.d] { state.busy[Int(register.index)] |= 1 }
      if case .registers(let group) = other.product.a {
        for register in group.all { state.busy[Int(register.index)] |= 2 }
      }
    }
  }

  private func issue(_ product: WarpgroupMatrix.Product, _ warp: Warp, _ block: Block) throws(Hazard) {
    let (state, r) = (warp.asynchronous!, warp.registers)
    try checkGroup(warp, block)
    // Descriptors and the predicate are the same in all lanes.
    func same(_ register: RegisterID) throws(Hazard) -> UInt64 {
      let lanes = r.longs(register)
      for lane in 1..<32 where lanes[lane] != lanes[0] {
        throw hazard(.undefined, "a descriptor differs between lanes", warp, block, lane: lane)
      }
      return lanes[0]
    }
    let b = try same(product.b)
    var a: UInt64 = 0
    let sums = program.kernel[product.d]
    var used = sums
    switch product.a {
    case .shared(let descriptor, _): a = try same(descriptor)
    case .registers(let group): used += group.all
    }
    var adds = true
    switch product.sum {
    case .always: break
    case .never: adds = false
    case .when(let predicate):
      let lanes = r.predicate(predicate)
      if lanes != 0 && lanes != .max {
        throw hazard(
          .undefined, "the predicate of a wgmma's sum differs between lanes", warp, block,
          lane: lanes.trailingZeroBitCount)
      }
      adds = lanes != 0
    }
    try checkFence(product, used, warp, block)
    try log(GroupLog.Step(operation: Int32(current), a: a, b: b, adds: adds), warp, block)

    var reads = try operandRanges(b, product.columns, product.isTransposedB, product.inputs, warp, block)
    if warp.index % 4 == 0 { counters.warpgroupOperandBytes += product.columns * 32 }
    if case .shared(_, let isTransposed) = product.a {
      let rows = warp.index % 4 * 16..<warp.index % 4 * 16 + 16
      reads += try operandRanges(a, 64, isTransposed, product.inputs, warp, block, rows: rows)
      counters.warpgroupOperandBytes += 16 * 32
    }
    // The warp reads as one: what only some of its lanes know does not count.
    let own = observer(warp, block, 32)
    for range in reads {
      do throws(Conflict) {
        try block.shadow.beginRead(range, own) { block.proxyFence(after: $0) }
      } catch {
        throw hazard(error, "shared address \(range.lowerBound)", warp, block, lane: 0)
      }
    }
    counters.warpgroupProducts += 1
    state.products.append(
      AsynchronousState.Product(
        product: product, operation: Int32(current), a: a, b: b, adds: adds, group: state.productGroups, reads: reads))
    for register in sums {
      let index = Int(register.index)
      state.busy[index] |= 1
      (state.sumTimes[index], state.sumLists[index]) = (state.time, AsynchronousState.SumList(product))
    }
    if case .registers(let group) = product.a {
      for register in group.all { state.busy[Int(register.index)] |= 2 }
    }
  }

  /// A fence lies between the last ordinary access of a product's registers and the product, and before the first.
  private func checkFence(
    _ product: WarpgroupMatrix.Product, _ used: [RegisterID], _ warp: Warp, _ block: Block
  ) throws(Hazard) {
    let state = warp.asynchronous!
    let names = program.kernel.registers
    for register in used where state.accesses[Int(register.index)] >= max(state.fence, 1) {
      throw hazard(
        .missingFence, "register %\(names[Int(register.index)].name) was accessed, and no wgmma.fence lies between",
        warp,
        block)
    }
    if state.fence == 0 { throw hazard(.missingFence, "no wgmma.fence lies before the first wgmma", warp, block) }
    // Products add to one another's sums without a fence only where these are the same.
    let own = AsynchronousState.SumList(product)
    let sums = program.kernel[product.d]
    for (place, register) in used.enumerated() {
      let index = Int(register.index)
      let isSum = state.busy[index] & 1 != 0
      if isSum && (state.sumLists[index] != own || place >= sums.count) {
        throw hazard(
          .registersUnderWay, "register %\(names[index].name) is a sum of another wgmma that nobody has waited for",
          warp,
          block)
      }
      if state.sumTimes[index] >= state.fence, let list = state.sumLists[index], list != own {
        throw hazard(
          .missingFence, "register %\(names[index].name) was a sum of another wgmma, and no wgmma.fence lies between",
          warp,
          block)
      }
    }
    for register in sums where state.busy[Int(register.index)] & 2 != 0 {
      throw hazard(
        .registersUnderWay,
        "register %\(names[Int(register.index)].name) is an operand of a wgmma that nobody has waited for", warp, block)
    }
  }

  /// All four warps of a group do the same.
  func log(_ step: GroupLog.Step, _ warp: Warp, _ block: Block) throws(Hazard) {
    let state = warp.asynchronous!
    let (group, number) = (warp.index / 4, state.groupSteps)
    state.groupSteps += 1
    if number == block.groupLogs[group].steps.count {
      block.groupLogs[group].steps.append(step)
    } else if block.groupLogs[group].steps[number] != step {
      throw hazard(
        .divergence, "the four warps of a group do not do the same here, or with other descriptors", warp, block)
    }
  }

  /// When a block ends: warps of a group have done as much.
  func finishGroups(_ block: Block) throws(Hazard) {
    for warp in block.warps where warp.index / 4 < block.groupLogs.count {
      guard let state = warp.asynchronous else { return }
      let steps = block.groupLogs[warp.index / 4].steps
      if state.groupSteps == steps.count { continue }
      current = Int(steps[state.groupSteps].operation)
      throw hazard(.divergence, "only some of the four warps of a group do this", warp, block)
    }
  }

  // MARK: - Operands

  /// Addresses of the 16-byte pieces of an operand: of each row of M or N two, or, transposed, of each row of k one for
  /// every eight of M or N.
  private func pieces(_ descriptor: UInt64, _ rows: Int, _ isTransposed: Bool, depth: Int) -> [Int] {
    let operand = OperandPlace(descriptor: descriptor, rows: rows, isTransposed: isTransposed, depth: depth)
    if let known = operandPieces[operand] { return known }
    let found = makePieces(descriptor, rows, isTransposed, depth: depth)
    operandPieces[operand] = found
    return found
  }

  private func makePieces(_ descriptor: UInt64, _ rows: Int, _ isTransposed: Bool, depth: Int) -> [Int] {
    let start = Int(descriptor & 0x3fff) << 4
    let (leading, stride) = (Int(descriptor >> 16 & 0x3fff) << 4, Int(descriptor >> 32 & 0x3fff) << 4)
    let swizzle: TensorMap.Swizzle = [.none, .bytes128, .bytes64, .bytes32][Int(descriptor >> 62)]
    let width = max(swizzle.rawValue, 16)
    var result: [Int] = []
    result.reserveCapacity(isTransposed ? depth * rows / 8 : rows * 2)
    if isTransposed {
      for k in 0..<depth {
        for piece in 0..<rows / 8 {
          let within = piece * 16
          result.append(swizzle(start + within / width * leading + k / 8 * stride + k % 8 * width + within % width))
        }
      }
    } else {
      for row in 0..<rows {
        let line = start + row / 8 * stride + row % 8 * width
        result.append(swizzle(line))
        result.append(swizzle(line + 16))
      }
    }
    return result
  }

  /// What an operand takes of shared memory; checked to be there.
  ///
  /// - Parameter part: rows of M or N that this warp reads.
  private func operandRanges(
    _ descriptor: UInt64, _ rows: Int, _ isTransposed: Bool, _ inputs: WarpgroupMatrix.Inputs, _ warp: Warp,
    _ block: Block, rows part: Range<Int>? = nil
  ) throws(Hazard) -> [Range<Int>] {
    let width = [0, 128, 64, 32][Int(descriptor >> 62)]
    if width == 0 {
      throw hazard(.undefined, "a descriptor without a swizzle, which the emulator does not know", warp, block)
    }
    if descriptor >> 49 & 7 != 0 {
      throw hazard(.undefined, "a descriptor with a base offset, which the emulator does not know", warp, block)
    }
    let start = Int(descriptor & 0x3fff) << 4
    if start % (8 * width) >= width {
      throw hazard(
        .misaligned,
        "an operand at shared address \(start), which is not in the first row of a pattern of \(8 * width) bytes", warp,
        block)
    }
    let part = part ?? 0..<rows
    let all = pieces(descriptor, rows, isTransposed, depth: inputs.depth)
    var own: [Int] = []
    if isTransposed {
      let (first, end) = (part.lowerBound / 8, part.upperBound / 8)
      for k in 0..<inputs.depth {
        let line = k * (rows / 8)
        own += all[line + first..<line + end]
      }
    } else {
      own = Array(all[part.lowerBound * 2..<part.upperBound * 2])
    }
    own.sort()
    var ranges: [Range<Int>] = []
    for piece in own {
      if let last = ranges.last, last.upperBound == piece {
        ranges[ranges.count - 1] = last.lowerBound..<piece + 16
      } else {
        ranges.append(piece..<piece + 16)
      }
    }
    for range in ranges {
      if range.upperBound > block.sharedByteCount {
        throw hazard(
          .outOfBounds,
          "bytes \(range.lowerBound) to \(range.upperBound) of shared memory, which has \(block.sharedByteCount)", warp,
          block)
      }
      if block.transactionBarrierBounds.overlaps(range) { try checkForBarriers(range, warp, block, 0) }
    }
    return ranges
  }

  // MARK: - Sums

  /// Makes a product, as late as it may be: reads the operands, and gives them back.
  private func finish(_ issued: AsynchronousState.Product, _ warp: Warp, _ block: Block) {
    let product = issued.product
    let (n, depth) = (product.columns, product.inputs.depth)
    sums.begin(product.inputs, product.accumulator, columns: n)
    let (size, inputs, a, b, d) = (product.inputs.byteCount, product.inputs, sums.a, sums.b, sums.d)
    let shared = UnsafeRawPointer(block.shared)
    @inline(__always) func value(_ bits: UInt32) -> Float {
      switch inputs {
      case .bf16: Float(bitPattern: bits << 16)
      case .f16: Half.float(.f16x2, bits)
      case .e4m3: Half.e4m3(bits)
      }
    }
    @inline(__always) func element(_ place: UnsafeRawPointer) -> Float {
      value(size == 2 ? UInt32(place.load(as: UInt16.self)) : UInt32(place.load(as: UInt8.self)))
    }
    let ofB = pieces(issued.b, n, product.isTransposedB, depth: depth)
    if product.isTransposedB {
      for k in 0..<depth {
        for column in 0..<n {
          b[k * n + column] = element(shared + ofB[k * (n / 8) + column / 8] + column % 8 * 2)
        }
      }
    } else {
      for column in 0..<n {
        for k in 0..<depth { b[k * n + column] = element(shared + ofB[column * 2 + k * size / 16] + k * size % 16) }
      }
    }
    let r = warp.registers
    switch product.a {
    case .shared(_, let isTransposed):
      let ofA = pieces(issued.a, 64, isTransposed, depth: depth)
      for row in 0..<16 {
        let own = warp.index % 4 * 16 + row
        for k in 0..<depth {
          a[row * depth + k] =
            isTransposed
            ? element(shared + ofA[k * 8 + own / 8] + own % 8 * 2)
            : element(shared + ofA[own * 2 + k * size / 16] + k * size % 16)
        }
      }
    case .registers(let group):
      for i in 0..<4 {
        let words = r.words(group[i])
        for lane in 0..<32 {
          let (row, first) = (lane / 4 + i % 2 * 8, (lane % 4 * 4 + i / 2 * 16) / size)
          for part in 0..<4 / size {
            let bits = words[lane] >> UInt32(part * size * 8)
            a[row * depth + first + part] = value(size == 2 ? bits & 0xffff : bits & 0xff)
          }
        }
      }
    }
    if product.isNegatedA { for i in 0..<16 * depth { a[i].negate() } }
    func place(_ i: Int, _ lane: Int) -> Int {
      product.accumulator == .f32
        ? (lane / 4 + i / 2 % 2 * 8) * n + i / 4 * 8 + lane % 4 * 2 + i % 2
        : (lane / 4 + i % 2 * 8) * n + i / 2 * 8 + lane % 4 * 2
    }
    let registers = program.kernel[product.d]
    if !issued.adds { d.update(repeating: 0, count: 16 * n) }
    for (i, register) in registers.enumerated() where issued.adds {
      if product.accumulator == .f32 {
        let floats = r.floats(register)
        for lane in 0..<32 { d[place(i, lane)] = floats[lane] }
      } else {
        let words = r.words(register)
        for lane in 0..<32 {
          d[place(i, lane)] = Half.float(.f16x2, words[lane] & 0xffff)
          d[place(i, lane) + 1] = Half.float(.f16x2, words[lane] >> 16)
        }
      }
    }
    sums.compute()
    for (i, register) in registers.enumerated() {
      if product.accumulator == .f32 {
        let floats = r.floats(register)
        for lane in 0..<32 { floats[lane] = d[place(i, lane)] }
      } else {
        let words = r.words(register)
        for lane in 0..<32 {
          let (low, high) = (d[place(i, lane)], d[place(i, lane) + 1])
          words[lane] = Half.bits(.f16x2, high) << 16 | Half.bits(.f16x2, low)
        }
      }
    }
    for range in issued.reads {
      block.shadow.endRead(
        range, reader: program.products(of: warp.index), clock: warp.clock, operation: issued.operation)
    }
  }
}
