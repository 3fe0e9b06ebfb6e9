/// An operand of `wgmma` in shared memory: where it begins, and how it lies.
public struct MatrixDescriptor {
  let register: Register<U64>
  let tile: MatrixTile
  /// Whether the tile's rows are those of k.
  let isTransposed: Bool

  /// The operand of step `step` along k.
  public func step(_ step: Int) -> MatrixDescriptor {
    advanced(by: tile.offset(ofStep: step, isTransposed: isTransposed))
  }

  /// The operand so many bytes further on, a multiple of 16.
  public func advanced(by byteCount: Int) -> MatrixDescriptor {
    if byteCount % 16 != 0 {
      register.builder.fail("An operand begins at a multiple of 16 bytes; \(byteCount) is none.")
    }
    // There is no carry out of the address: shared memory has less than 2^18 bytes.
    return byteCount == 0
      ? self : MatrixDescriptor(register: register + byteCount / 16, tile: tile, isTransposed: isTransposed)
  }
}

/// What warps of a block do, and how many registers each thread of theirs takes.
public struct WarpRole {
  let name: String
  let warpgroups: Int
  let registers: Int
  let body: (Register<U32>) -> Void

  /// - Parameters:
  ///   - name: for the reader of the PTX.
  ///   - warpgroups: groups of four warps.
  ///   - registers: of each thread, a multiple of 8 from 24 to 256.
  ///   - body: what they do; it gets the number of the group among those of this role.
  public init(_ name: String, warpgroups: Int = 1, registers: Int, body: @escaping (Register<U32>) -> Void) {
    (self.name, self.warpgroups, self.registers, self.body) = (name, warpgroups, registers, body)
  }
}

extension KernelBuilder {
  // MARK: - Products of four warps

  /// An operand of `wgmma`: a tile of shared memory.
  ///
  /// - Parameters:
  ///   - tile: how the operand lies in memory.
  ///   - address: where.
  ///   - isTransposed: whether the tile's rows are those of k, and its columns those of M or N; otherwise its rows
  ///     are those of M or N. Bytes are never transposed.
  ///   - file: for messages.
  ///   - line: for messages.
  public func descriptor(
    _ tile: MatrixTile, at address: Register<U32>, isTransposed: Bool = false, file: String = #fileID,
    line: Int = #line
  ) -> MatrixDescriptor {
    at(file, line)
    check(address)
    let low = ((address & 0x3ffff) >> 4)
    let bits = make(U64.self)
    emit(.arithmetic(.move(.u64, d: bits.id, a: .immediate(tile.descriptorBits(isTransposed: isTransposed)))))
    let register = wide(low, file: file, line: line) | bits
    return MatrixDescriptor(register: register, tile: tile, isTransposed: isTransposed)
  }

  /// Orders accesses of accumulators, and of registers of A, before with the products that follow.
  public func warpgroupFence(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.warpgroup(.fence))
  }

  /// Makes a group of the products since the last.
  public func commitProducts(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.warpgroup(.commit))
  }

  /// Waits until at most `pending` of the newest groups of products are under way.
  public func waitForProducts(pending: Int = 0, file: String = #fileID, line: Int = #line) {
    at(file, line)
    if !(0...7).contains(pending) {
      fail("A wait leaves 0 to 7 groups of products pending; \(pending) were asked for.")
    }
    emit(.warpgroup(.wait(pending: UInt8(clamping: pending))))
  }

  /// Starts `d = a b`, or `d += a b`, of 64 rows by four warps: both operands from shared memory.
  ///
  /// - Parameters:
  ///   - inputs: the type of the operands.
  ///   - a: 64 rows.
  ///   - b: as many columns as D has.
  ///   - d: f32, or for f16 and e4m3 also f16x2.
  ///   - sum: whether D is added to; `.never` needs nothing in it.
  ///   - negatesA: whether A counts with the other sign (16 bits only).
  ///   - file: for messages.
  ///   - line: for messages.
  public func startProduct<T: FloatType>(
    _ inputs: WarpgroupMatrix.Inputs, a: MatrixDescriptor, b: MatrixDescriptor, into d: [Register<T>],
    sum: ProductSum = .always, negatesA: Bool = false, file: String = #fileID, line: Int = #line
  ) {
    at(file, line)
    check(a.register)
    checkOperand(a, rows: 64, "A", inputs)
    startProduct(inputs, .shared(a.register.id, isTransposed: a.isTransposed), b, d, sum, negatesA)
  }

  /// The same with A from registers, four for a step along k.
  public func startProduct<T: FloatType>(
    _ inputs: WarpgroupMatrix.Inputs, a: [Register<U32>], b: MatrixDescriptor, into d: [Register<T>],
    sum: ProductSum = .always, negatesA: Bool = false, file: String = #fileID, line: Int = #line
  ) {
    at(file, line)
    a.forEach { check($0) }
    guard a.count == 4 else { return fail("A product takes 4 registers of A; \(a.count) were given.") }
    startProduct(inputs, .registers(RegisterGroup(a.map(\.id))), b, d, sum, negatesA)
  }

  /// Whether the accumulators of a product are added to.
  public enum ProductSum {
    case always, never
    /// Where it holds; the same in all lanes.
    case when(Predicate)
  }

  private func startProduct<T: FloatType>(
    _ inputs: WarpgroupMatrix.Inputs, _ a: WarpgroupMatrix.Left, _ b: MatrixDescriptor, _ d: [Register<T>],
    _ sum: ProductSum, _ negatesA: Bool
  ) {
    check(b.register)
    d.forEach { check($0) }
    if T.kind == .bf16x2 { fail("There are no bf16 accumulators; use f32.") }
    let accumulator: Matrix.Accumulator = T.kind == .f32 ? .f32 : .f16
    let columns = d.count * (accumulator == .f32 ? 2 : 4)
    if columns % 8 != 0 || !(8...256).contains(columns) {
      fail("A product has a multiple of 8 columns from 8 to 256; \(d.count) accumulators are \(columns) columns.")
    }
    if negatesA && inputs.byteCount == 1 { fail("Bytes have no negation; negate the sums.") }
    if accumulator == .f16 && inputs == .bf16 { fail("There are no f16 accumulators for bf16 inputs; use f32.") }
    checkOperand(b, rows: columns, "B", inputs)
    let own: WarpgroupMatrix.Sum
    switch sum {
    case .always: own = .always
    case .never: own = .never
    case .when(let predicate):
      check(predicate)
      own = .when(predicate.id)
    }
    emit(
      .warpgroup(
        .multiplyAdd(
          WarpgroupMatrix.Product(
            inputs, accumulator, d: list(d.map(\.id)), a: a, b: b.register.id, isTransposedB: b.isTransposed, sum: own,
            isNegatedA: negatesA))))
  }

  /// An operand's tile has elements of the product's size, and as many rows of M or N as are read.
  private func checkOperand(
    _ operand: MatrixDescriptor, rows: Int, _ name: String, _ inputs: WarpgroupMatrix.Inputs
  ) {
    let tile = operand.tile
    if tile.elementByteCount != inputs.byteCount {
      fail("\(name) is a tile of \(tile.elementByteCount)-byte elements; \(inputs) has \(inputs.byteCount).")
    } else if inputs.byteCount == 1 && operand.isTransposed {
      fail("Bytes cannot be transposed; k runs along the rows of both operands in memory.")
    }
    let own = operand.isTransposed ? tile.columns : tile.rows
    if own < rows { fail("\(name) is read for \(rows) of \(name == "A" ? "M" : "N"); its tile has \(own).") }
  }

  /// Accumulators for `startProduct`, which nobody need clear: their first product has the sum `.never`.
  public func accumulators(_ count: Int, file: String = #fileID, line: Int = #line) -> [Register<F32>] {
    at(file, line)
    return (0..<count).map { _ in make(F32.self) }
  }

  // MARK: - Roles

  /// Divides the block's warps into roles, the first groups of four to the first: each gives back registers or waits for
  /// more, and does what its role is. Nothing may follow but what all do alike.
  public func roles(_ roles: [WarpRole], file: String = #fileID, line: Int = #line) {
    at(file, line)
    let groups = roles.reduce(0) { $0 + $1.warpgroups }
    if groups * 128 != threadsPerBlock {
      fail("The roles have \(groups * 128) threads together, the block \(threadsPerBlock); they must be the same.")
    }
    let atFirst = registersAtFirst
    for role in roles where role.registers % 8 != 0 || !(24...256).contains(role.registers) {
      fail("The role '\(role.name)' asks for \(role.registers) registers; a thread has a multiple of 8 from 24 to 256.")
    }
    let asked = roles.reduce(0) { $0 + $1.warpgroups * $1.registers }
    if asked > atFirst * groups {
      fail(
        "The roles ask for \(asked) registers, counted for one thread of each group; \(groups) groups of \(atFirst) have "
          + "\(atFirst * groups).")
    }
    // The same in all lanes, and known to be.
    let group = shuffle(special(.threadX, file: file, line: line) / 128, lane: constant(0, U32.self)).named("warpgroup")
    func emit(_ rest: ArraySlice<WarpRole>, from first: Int) {
      guard let role = rest.first else { return }
      func own() {
        comment("role: \(role.name)")
        setRegisterCount(role.registers, isIncrease: role.registers > atFirst, file: file, line: line)
        role.body(first == 0 ? group : group - first)
      }
      if rest.count == 1 { return own() }
      self.if(group .< (first + role.warpgroups), file: file, line: line, own) {
        emit(rest.dropFirst(), from: first + role.warpgroups)
      }
    }
    emit(roles[...], from: 0)
  }

  /// The four warps of a group have so many registers a thread from now on: they give back the others, or wait until
  /// others have given back enough. `roles` does it with the sums checked.
  public func setRegisterCount(_ count: Int, isIncrease: Bool, file: String = #fileID, line: Int = #line) {
    at(file, line)
    if count % 8 != 0 || !(24...256).contains(count) {
      fail("A thread has a multiple of 8 registers from 24 to 256; \(count) is none.")
    }
    emit(.control(.setRegisterCount(isIncrease: isIncrease, UInt16(clamping: count))))
  }

  /// True in one lane of the warp, whichever the hardware picks.
  public func elect(file: String = #fileID, line: Int = #line) -> Predicate {
    at(file, line)
    let result = make(Bool1.self)
    emit(.warp(.elect(d: result.id)))
    return result
  }

  /// Writes as many 8 x 8 matrices of 16-bit elements as there are registers (1, 2 or 4) to shared memory; lane 8i + r
  /// gives the 16-byte aligned address of row r of matrix i.
  public func storeMatrix(
    _ values: [Register<U32>], shared address: Register<U32>, offset: Int = 0, isTransposed: Bool = false,
    file: String = #fileID, line: Int = #line
  ) {
    at(file, line)
    check(address)
    values.forEach { check($0) }
    guard [1, 2, 4].contains(values.count) else {
      return fail("stmatrix stores 1, 2 or 4 matrices; \(values.count) were given.")
    }
    emit(
      .matrix(
        .store(
          isTransposed: isTransposed, values: RegisterGroup(values.map(\.id)), address: address.id,
          offset: checkOffset(offset))))
  }
}
