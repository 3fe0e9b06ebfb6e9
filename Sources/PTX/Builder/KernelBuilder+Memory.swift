extension KernelBuilder {
  // MARK: - Shared memory

  /// Shared memory of a size known now; returns its address.
  public func shared(
    _ name: String, byteCount: Int, alignment: Int = 16, file: String = #fileID, line: Int = #line
  ) -> Register<U32> {
    at(file, line)
    if byteCount < 1 || byteCount > 48 * 1024 {
      fail("'\(name)' has \(byteCount) bytes; static shared memory has 1 to 49152. Use dynamic shared memory beyond.")
    }
    checkAlignment(alignment, of: name)
    let index = addShared(name, byteCount: byteCount, alignment: alignment)
    let result = make(U32.self)
    emit(.memory(.sharedAddress(index, d: result.id)))
    return result.named(name)
  }

  /// The shared memory whose size the launch decides; returns its address.
  public func dynamicShared(
    alignment: Int = 128, file: String = #fileID, line: Int = #line
  ) -> Register<U32> {
    at(file, line)
    checkAlignment(alignment, of: "dynamic shared memory")
    useDynamicShared(alignment: alignment)
    let result = make(U32.self)
    emit(.memory(.sharedAddress(-1, d: result.id)))
    return result.named("shared")
  }

  private func checkAlignment(_ alignment: Int, of name: String) {
    if alignment < 1 || alignment > 1024 || alignment & (alignment - 1) != 0 {
      fail("'\(name)' is to be aligned to \(alignment) bytes; an alignment is a power of two up to 1024.")
    }
  }

  // MARK: - Loads and stores

  /// Loads one value from global memory.
  public func load<T: RegisterType>(
    _: T.Type, global address: Register<U64>, offset: Int = 0, hint: Memory.CacheHint = .none,
    ordering: Memory.Ordering = .weak, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    load(T.self, count: 1, global: address, offset: offset, hint: hint, ordering: ordering, file: file, line: line)[0]
  }

  /// Loads 1, 2 or 4 neighbouring values, at most 16 bytes, by one access that is aligned to its size.
  public func load<T: RegisterType>(
    _: T.Type, count: Int, global address: Register<U64>, offset: Int = 0, hint: Memory.CacheHint = .none,
    ordering: Memory.Ordering = .weak, file: String = #fileID, line: Int = #line
  ) -> [Register<T>] {
    at(file, line)
    check(address)
    if ordering == .release { fail("A load cannot release; use acquire or relaxed.") }
    if ordering != .weak && hint != .none { fail("An ordered load takes no cache hint.") }
    return load(T.self, count, .global, ordering, hint, address.id, offset)
  }

  /// Loads one value from shared memory.
  public func load<T: RegisterType>(
    _: T.Type, shared address: Register<U32>, offset: Int = 0, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    load(T.self, count: 1, shared: address, offset: offset, file: file, line: line)[0]
  }

  /// Loads 1, 2 or 4 neighbouring values from shared memory.
  public func load<T: RegisterType>(
    _: T.Type, count: Int, shared address: Register<U32>, offset: Int = 0, file: String = #fileID, line: Int = #line
  ) -> [Register<T>] {
    at(file, line)
    check(address)
    return load(T.self, count, .shared, .weak, .none, address.id, offset)
  }

  private func load<T: RegisterType>(
    _: T.Type, _ count: Int, _ space: Memory.Space, _ ordering: Memory.Ordering, _ hint: Memory.CacheHint,
    _ address: RegisterID, _ offset: Int
  ) -> [Register<T>] {
    let isPossible = checkVector(T.kind, count, offset)
    let results = (0..<(isPossible ? count : 1)).map { _ in make(T.self) }
    if isPossible {
      emit(
        .memory(
          .load(
            space, ordering, hint, Memory.Width(rawValue: T.kind.byteCount)!, d: RegisterGroup(results.map(\.id)),
            address: address, offset: checkOffset(offset))))
    }
    // After a mistake the registers mean nothing, but the Swift code may go on.
    return isPossible ? results : (0..<max(count, 1)).map { _ in results[0] }
  }

  /// Stores one value to global memory.
  public func store<T: RegisterType>(
    _ value: Register<T>, global address: Register<U64>, offset: Int = 0, ordering: Memory.Ordering = .weak,
    file: String = #fileID, line: Int = #line
  ) {
    store([value], global: address, offset: offset, ordering: ordering, file: file, line: line)
  }

  /// Stores 1, 2 or 4 neighbouring values, at most 16 bytes, by one access that is aligned to its size.
  public func store<T: RegisterType>(
    _ values: [Register<T>], global address: Register<U64>, offset: Int = 0, ordering: Memory.Ordering = .weak,
    file: String = #fileID, line: Int = #line
  ) {
    at(file, line)
    check(address)
    if ordering == .acquire { fail("A store cannot acquire; use release or relaxed.") }
    store(values, .global, ordering, address.id, offset)
  }

  /// Stores one value to shared memory.
  ///
  /// - Parameters:
  ///   - value: what is stored.
  ///   - address: a multiple of the value's size, the offset included.
  ///   - offset: bytes behind the address.
  ///   - isVolatile: whether the assembler neither moves nor removes it, nor computes the value behind it.
  ///   - file: for messages.
  ///   - line: for messages.
  public func store<T: RegisterType>(
    _ value: Register<T>, shared address: Register<U32>, offset: Int = 0, isVolatile: Bool = false,
    file: String = #fileID, line: Int = #line
  ) {
    store([value], shared: address, offset: offset, isVolatile: isVolatile, file: file, line: line)
  }

  /// Stores 1, 2 or 4 neighbouring values to shared memory.
  public func store<T: RegisterType>(
    _ values: [Register<T>], shared address: Register<U32>, offset: Int = 0, isVolatile: Bool = false,
    file: String = #fileID, line: Int = #line
  ) {
    at(file, line)
    check(address)
    store(values, .shared, isVolatile ? .volatile : .weak, address.id, offset)
  }

  private func store<T: RegisterType>(
    _ values: [Register<T>], _ space: Memory.Space, _ ordering: Memory.Ordering, _ address: RegisterID, _ offset: Int
  ) {
    values.forEach { check($0) }
    guard checkVector(T.kind, values.count, offset) else { return }
    emit(
      .memory(
        .store(
          space, ordering, Memory.Width(rawValue: T.kind.byteCount)!, values: RegisterGroup(values.map(\.id)),
          address: address, offset: checkOffset(offset))))
  }

  private func checkVector(_ kind: RegisterKind, _ count: Int, _ offset: Int) -> Bool {
    if kind == .predicate {
      fail("A predicate has no place in memory; select a number with it.")
    } else if ![1, 2, 4].contains(count) || count * kind.byteCount > 16 {
      fail("\(count) values of \(kind) are no vector; one access moves 1, 2 or 4 values and at most 16 bytes.")
    } else if Int32(exactly: offset) == nil {
      fail("The offset \(offset) does not fit an instruction; add it to the address.")
    } else {
      return true
    }
    return false
  }

  // MARK: - Atomics

  /// Changes a word of global memory in one step; returns what it was.
  public func atomic<T: RegisterType>(
    _ operation: AtomicOperation.Operation, global address: Register<U64>, offset: Int = 0, _ value: Register<T>,
    ordering: AtomicOperation.Ordering = .relaxed, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    check(address)
    return atomic(operation, .global, address.id, offset, value, ordering)
  }

  /// Changes a word of shared memory in one step; returns what it was.
  public func atomic<T: RegisterType>(
    _ operation: AtomicOperation.Operation, shared address: Register<U32>, offset: Int = 0, _ value: Register<T>,
    ordering: AtomicOperation.Ordering = .relaxed, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    check(address)
    return atomic(operation, .shared, address.id, offset, value, ordering)
  }

  /// Replaces a word of global memory by `value` where it is `expected`; returns what it was.
  public func compareAndSwap<T: IntegerType>(
    global address: Register<U64>, offset: Int = 0, expected: Register<T>, value: Register<T>,
    ordering: AtomicOperation.Ordering = .relaxed, file: String = #fileID, line: Int = #line
  ) -> Register<T> {
    at(file, line)
    check(address)
    check(expected)
    return atomic(.compareAndSwap, .global, address.id, offset, value, ordering, expected: expected.operand)
  }

  private func atomic<T: RegisterType>(
    _ operation: AtomicOperation.Operation, _ space: Memory.Space, _ address: RegisterID, _ offset: Int,
    _ value: Register<T>, _ ordering: AtomicOperation.Ordering, expected: Operand? = nil
  ) -> Register<T> {
    check(value)
    let isPossible =
      switch T.kind {
      case .u32, .s32: true
      case .u64: [.add, .exchange, .compareAndSwap, .min, .max].contains(operation)
      case .f32: [.add, .exchange].contains(operation)
      default: false
      }
    if !isPossible { fail("There is no atomic \(operation.rawValue) of \(T.kind).") }
    if operation == .compareAndSwap && expected == nil {
      fail("Use compareAndSwap, which also takes what is expected.")
    }
    let result = make(T.self)
    emit(
      .atomic(
        AtomicOperation(
          operation: operation, ordering: ordering, space: space, kind: T.kind, d: result.id, address: address,
          offset: checkOffset(offset), value: value.operand, expected: expected)))
    return result
  }

  /// Adds 1, 2 or 4 neighbouring numbers to those of global memory, each in one step; the places are aligned to all of them.
  /// More than one need sm_90.
  public func add(
    _ values: [Register<F32>], global address: Register<U64>, offset: Int = 0, file: String = #fileID,
    line: Int = #line
  ) {
    at(file, line)
    check(address)
    values.forEach { check($0) }
    guard checkVector(.f32, values.count, offset) else { return }
    emit(
      .memory(.add(values: RegisterGroup(values.map(\.id)), address: address.id, offset: checkOffset(offset))))
  }

  // MARK: - Asynchronous copies

  /// Starts copying 4, 8 or 16 bytes from global to shared memory; both places are aligned to that. Of the source, only
  /// `sourceBytes` are read where given, and the rest becomes zero.
  public func copyAsync(
    to destination: Register<U32>, offset destinationOffset: Int = 0, from source: Register<U64>,
    offset sourceOffset: Int = 0, byteCount: Int = 16, sourceBytes: Register<U32>? = nil, file: String = #fileID,
    line: Int = #line
  ) {
    at(file, line)
    check(destination)
    check(source)
    if let sourceBytes { check(sourceBytes) }
    if ![4, 8, 16].contains(byteCount) {
      fail("An asynchronous copy has 4, 8 or 16 bytes; \(byteCount) were asked for.")
    }
    emit(
      .asynchronousCopy(
        .copy(
          byteCount: UInt8(clamping: byteCount), destination: destination.id,
          destinationOffset: checkOffset(destinationOffset), source: source.id, sourceOffset: checkOffset(sourceOffset),
          sourceBytes: sourceBytes?.operand)))
  }

  /// Makes a group of the copies since the last group.
  public func commitCopies(file: String = #fileID, line: Int = #line) {
    at(file, line)
    emit(.asynchronousCopy(.commit))
  }

  /// Waits until at most `pending` of the newest groups are under way. What they wrote is then seen by this thread; by
  /// others only after a barrier.
  public func waitForCopies(pending: Int, file: String = #fileID, line: Int = #line) {
    at(file, line)
    if !(0...255).contains(pending) { fail("\(pending) pending groups cannot be asked for.") }
    emit(.asynchronousCopy(.waitGroup(pending: UInt8(clamping: pending))))
  }
}
