/// The kernel that is being built: what Swift code calls to emit instructions.
///
/// Swift's own `for` unrolls; `loop`, `while` and `if` emit control flow. A mistake does not stop the Swift code: the
/// first one is kept, and `Kernel.build` throws it with the line where it was made.
public final class KernelBuilder {
  private(set) var parameters: [Kernel.Parameter] = []
  private(set) var registers: [Kernel.Register] = []
  private(set) var registerLists: [[RegisterID]] = []
  private var listNumbers: [[RegisterID]: Int32] = [:]
  private(set) var sharedBuffers: [Kernel.SharedBuffer] = []
  private(set) var dynamicSharedAlignment: Int?
  private(set) var failure: KernelError?
  let threadsPerBlock: Int
  /// Registers of a thread when the kernel begins.
  let registersAtFirst: Int
  /// Bodies under construction, the innermost last.
  private var bodies: [[Kernel.Node]] = [[]]
  private var location = SourceLocation(file: "", line: 0)
  private var condition: Kernel.Guard?
  private var usedNames: [String: Int] = [:]

  init(threadsPerBlock: Int, blocksPerMultiprocessor: Int?) {
    self.threadsPerBlock = threadsPerBlock
    registersAtFirst = Kernel.registersAtFirst(
      threadsPerBlock: threadsPerBlock, blocksPerMultiprocessor: blocksPerMultiprocessor)
  }

  var body: [Kernel.Node] { bodies[0] }

  // MARK: - For the instructions

  /// Named calls begin here: what follows stands on this line.
  func at(_ file: String, _ line: Int) { location = SourceLocation(file: file, line: line) }

  /// Keeps the first mistake.
  func fail(_ message: String) {
    if failure == nil { failure = KernelError(message, at: location) }
  }

  func make<T: RegisterType>(_: T.Type) -> Register<T> {
    let index = registers.count
    let name = "\(T.kind.storage.letter)\(index)"
    registers.append(Kernel.Register(kind: T.kind, name: name))
    return Register(id: RegisterID(index: Int32(index), kind: T.kind), builder: self)
  }

  private func unique(_ name: String) -> String {
    let plain = String(name.map { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "_") ? $0 : "_" })
    let used = usedNames[plain, default: 0]
    usedNames[plain] = used + 1
    // An underscore keeps given names apart from r12 and the like.
    return used == 0 ? "\(plain)_" : "\(plain)_\(used)"
  }

  func emit(_ instruction: Instruction) {
    let statement = Kernel.Statement(instruction: instruction, guardedBy: condition, location: location)
    bodies[bodies.count - 1].append(.statement(statement))
  }

  func check(_ other: KernelBuilder) {
    if other !== self { fail("A register of another kernel is used here; registers live in one kernel only.") }
  }

  /// A constant in an instruction; it must fit the type, as signed or as unsigned bits.
  func literal(_ value: Int, _ kind: RegisterKind) -> Operand {
    if kind.byteCount == 4 && !(Int(Int32.min)...Int(UInt32.max)).contains(value) {
      fail("The constant \(value) does not fit \(kind).")
    }
    return .integer(value)
  }

  /// An offset in an instruction has 32 bits.
  func checkOffset(_ offset: Int) -> Int32 {
    if Int32(exactly: offset) == nil {
      fail("The offset \(offset) does not fit an instruction; add it to the address.")
    }
    return Int32(truncatingIfNeeded: offset)
  }

  func require(_ kind: RegisterKind, isNoneOf kinds: [RegisterKind], _ operation: String) {
    if kinds.contains(kind) { fail("There is no \(operation) of \(kind).") }
  }

  func check<T>(_ register: Register<T>) { check(register.builder) }

  func binary<T: RegisterType>(
    _ operation: Arithmetic.BinaryOperation, _ a: Register<T>, _ b: Operand, _ other: KernelBuilder? = nil
  ) -> Register<T> {
    if let other { check(other) }
    check(a)
    let result = make(T.self)
    emit(.arithmetic(.binary(operation, T.kind, d: result.id, a: a.operand, b: b)))
    return result
  }

  func unary<T: RegisterType>(_ operation: Arithmetic.UnaryOperation, _ a: Register<T>) -> Register<T> {
    check(a)
    let result = make(T.self)
    emit(.arithmetic(.unary(operation, T.kind, d: result.id, a: a.operand)))
    return result
  }

  func compare<T: RegisterType>(
    _ comparison: Arithmetic.Comparison, _ a: Register<T>, _ b: Operand, _ other: KernelBuilder? = nil
  ) -> Predicate {
    if let other { check(other) }
    check(a)
    let result = make(Bool1.self)
    emit(.arithmetic(.compare(comparison, T.kind, d: result.id, a: a.operand, b: b)))
    return result
  }

  /// The kernel's list of some registers; equal ones are one.
  func list(_ registers: [RegisterID]) -> RegisterList {
    let known = listNumbers[registers]
    let number = known ?? Int32(registerLists.count)
    if known == nil {
      registerLists.append(registers)
      listNumbers[registers] = number
    }
    return RegisterList(index: number, count: Int32(registers.count))
  }

  func addParameter(_ name: String, _ kind: RegisterKind, _ role: Kernel.Parameter.Role) -> Int32 {
    if parameters.contains(where: { $0.name == name }) { fail("There are two parameters '\(name)'.") }
    parameters.append(Kernel.Parameter(name: name, kind: kind, role: role))
    return Int32(parameters.count - 1)
  }

  func addShared(_ name: String, byteCount: Int, alignment: Int) -> Int32 {
    sharedBuffers.append(Kernel.SharedBuffer(name: name, byteCount: byteCount, alignment: alignment))
    let total = sharedBuffers.reduce(0) { ($0 + $1.alignment - 1) / $1.alignment * $1.alignment + $1.byteCount }
    if byteCount <= 49152 && total > 49152 {
      fail("The static shared buffers have \(total) bytes together; 49152 is the limit. Use dynamic shared memory.")
    }
    return Int32(sharedBuffers.count - 1)
  }

  func useDynamicShared(alignment: Int) { dynamicSharedAlignment = max(dynamicSharedAlignment ?? 1, alignment) }

  // MARK: - Structure

  /// A line of text for the reader of the PTX.
  public func comment(_ text: String) {
    for line in text.split(separator: "\n") { bodies[bodies.count - 1].append(.comment(String(line))) }
  }

  func rename(_ register: RegisterID, _ name: String) {
    registers[Int(register.index)] = Kernel.Register(kind: register.kind, name: unique(name))
  }

  func collect(_ body: () -> Void) -> [Kernel.Node] {
    bodies.append([])
    let (outer, place) = (condition, location)
    condition = nil
    body()
    condition = outer
    location = place
    return bodies.removeLast()
  }

  func append(_ node: Kernel.Node) { bodies[bodies.count - 1].append(node) }

  var here: SourceLocation { location }

  /// Runs `body` by those lanes only where `predicate` holds; skipped whole where it holds in none.
  public func `if`(
    _ predicate: Predicate, file: String = #fileID, line: Int = #line, _ body: () -> Void,
    else otherwise: () -> Void = {}
  ) {
    at(file, line)
    check(predicate)
    requireNoGuard()
    let node = Kernel.Node.branch(
      Kernel.Guard(predicate: predicate.id, isNegated: false), then: collect(body), otherwise: collect(otherwise),
      location: here)
    append(node)
  }

  /// Runs `body`, then again by the lanes where the predicate that it returns holds.
  public func loop(file: String = #fileID, line: Int = #line, _ body: () -> Predicate) {
    at(file, line)
    requireNoGuard()
    var predicate: Predicate?
    let nodes = collect { predicate = body() }
    check(predicate!)
    append(.loop(body: nodes, repeatsWhile: predicate!.id, location: here))
  }

  /// Runs `body` for the numbers from `start` up to, not including, `end`; not at all where there are none.
  public func loop<T: IntegerType>(
    from start: Register<T>, to end: Register<T>, by step: Int = 1, file: String = #fileID, line: Int = #line,
    _ body: (Register<T>) -> Void
  ) {
    at(file, line)
    let counter = variable(start, file: file, line: line).named("i")
    self.if(counter .< end, file: file, line: line) {
      loop(file: file, line: line) {
        body(counter)
        at(file, line)
        emit(.arithmetic(.binary(.add, T.kind, d: counter.id, a: counter.operand, b: .integer(step))))
        return counter .< end
      }
    }
  }

  /// Emits the instructions of `body` with a guard instead of a branch: for a few instructions without control flow.
  public func when(
    _ predicate: Predicate, isNegated: Bool = false, file: String = #fileID, line: Int = #line, _ body: () -> Void
  ) {
    at(file, line)
    check(predicate)
    if condition != nil { fail("`when` cannot stand inside another `when`; combine the predicates with &.") }
    let outer = condition
    condition = Kernel.Guard(predicate: predicate.id, isNegated: isNegated)
    body()
    condition = outer
  }

  private func requireNoGuard() {
    if condition != nil { fail("`when` holds instructions only; put `if` around control flow.") }
  }

  /// A new register that starts as a copy of `value` and may be changed by `set`.
  public func variable<T>(_ value: Register<T>, file: String = #fileID, line: Int = #line) -> Register<T> {
    at(file, line)
    check(value)
    let result = make(T.self)
    emit(.arithmetic(.move(T.kind, d: result.id, a: value.operand)))
    return result
  }

  /// Changes a register.
  public func set<T>(_ target: Register<T>, to value: Register<T>, file: String = #fileID, line: Int = #line) {
    at(file, line)
    check(target)
    check(value)
    emit(.arithmetic(.move(T.kind, d: target.id, a: value.operand)))
  }
}

extension Kernel {
  /// Builds a kernel by running `body`.
  ///
  /// - Parameters:
  ///   - name: the entry point; letters, digits and underscores.
  ///   - threadsPerBlock: threads of a block, a multiple of 32 up to 1024.
  ///   - blocksPerMultiprocessor: blocks that should fit a multiprocessor at once; nil leaves it to ptxas.
  ///   - clusterSize: blocks of a cluster along x, 1 to 8 (16 where the launch allows it); nil without clusters.
  ///   - file: for messages.
  ///   - line: for messages.
  ///   - body: emits the kernel.
  /// - Throws: `KernelError`, the first mistake of the body, with its line.
  public static func build(
    _ name: String, threadsPerBlock: Int, blocksPerMultiprocessor: Int? = nil, clusterSize: Int? = nil,
    file: String = #fileID, line: Int = #line, _ body: (KernelBuilder) -> Void
  ) throws(KernelError) -> Kernel {
    let builder = KernelBuilder(threadsPerBlock: threadsPerBlock, blocksPerMultiprocessor: blocksPerMultiprocessor)
    builder.at(file, line)
    if threadsPerBlock % 32 != 0 || !(32...1024).contains(threadsPerBlock) {
      builder.fail("A block of \(threadsPerBlock) threads is impossible; it has a multiple of 32, from 32 to 1024.")
    }
    if name.isEmpty || !name.first!.isLetter
      || !name.allSatisfy({ $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "_") })
    {
      builder.fail("'\(name)' is no name for a kernel; use letters, digits and underscores, a letter first.")
    }
    if let clusterSize, !(1...16).contains(clusterSize) {
      builder.fail("A cluster of \(clusterSize) blocks is impossible; it has 1 to 16.")
    }
    body(builder)
    if let failure = builder.failure { throw failure }
    return Kernel(
      name: name, parameters: builder.parameters, registers: builder.registers, registerLists: builder.registerLists,
      sharedBuffers: builder.sharedBuffers,
      dynamicSharedAlignment: builder.dynamicSharedAlignment, threadsPerBlock: threadsPerBlock,
      blocksPerMultiprocessor: blocksPerMultiprocessor, clusterSize: clusterSize, body: builder.body)
  }
}
