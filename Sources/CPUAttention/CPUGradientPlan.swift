public import Attention
internal import CPUMicrokernels
internal import Synchronization

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// How the gradients of a problem are computed on the CPU: every choice, made once.
///
/// A unit of work is one (batch, key/value head), or some of its tiles of keys where there are fewer of these than threads. It
/// walks over tiles of keys, and for each over the packed query rows that see some of it: five products a pair of tiles. dK and
/// dV of a tile are done when its rows are; dQ is added up in f32, `[rows][D]` for each unit, and in the order of the units
/// where several have a part of it: the same bits in every run with as many threads.
public struct CPUGradientPlan: Sendable {
  /// What the gradients are of.
  public let problem: AttentionProblem
  /// The vectors in use.
  public let instructionSet: InstructionSet
  /// Threads at most.
  public let threads: Int
  /// Parts that the tiles of keys of a (batch, key/value head) are dealt out to.
  public let parts: Int

  /// Rows and keys of a pair of tiles: with D 128, all of it within 256 KB.
  static let tile = 64

  /// - Throws: `AttentionError` where the problem has no gradients, or a head dimension is not a multiple of 8 up to 1024.
  public init(
    _ problem: AttentionProblem, threads: Int = WorkerTeam.processors, instructionSet: InstructionSet = .best
  ) throws(AttentionError) {
    try problem.checkHasGradients()
    // What the forward pass takes.
    _ = try CPUPlan(problem, threads: 1)
    (self.problem, self.instructionSet) = (problem, instructionSet)
    self.threads = min(max(1, threads), CPUPlan.threadsAtMost)
    let heads = problem.batch * problem.keyValueHeads
    let tiles = (problem.keys + Self.tile - 1) / Self.tile
    parts = heads == 0 || heads >= self.threads ? 1 : max(1, min((self.threads + heads - 1) / heads, tiles))
  }

  /// What multiplies: bf16 in pairs, where products of these are one instruction.
  var products: FAGradients {
    let functions = instructionSet.functions
    let isPaired = problem.scalarType == .bf16 && instructionSet.hasPairs
    return isPaired ? functions.pointee.pair_gradients : functions.pointee.gradients
  }

  /// Elements of a word of the matrices that are multiplied.
  var elements: Int { Int(products.elements) }

  /// Columns of rows of so many elements, in f32.
  func padded(_ dimension: Int) -> Int {
    (dimension + instructionSet.lanes - 1) / instructionSet.lanes * instructionSet.lanes
  }

  /// Words of rows of so many elements.
  func words(_ dimension: Int) -> Int { padded((dimension + elements - 1) / elements) }

  /// Packed rows of a (batch, key/value head).
  var rows: Int { problem.groupSize * problem.queries }
  /// The same, and one more where a word would have one too few.
  var evenRows: Int { (rows + elements - 1) / elements * elements }

  /// Computes the gradients of a problem with whole keys.
  ///
  /// - Throws: `AttentionError` where the tensors are not what was planned, and `.memory` where there is not enough for Q, dO
  ///   and dQ, each in 32 bits an element.
  public func run(_ tensors: GradientTensors<HostMemory>) throws(AttentionError) {
    try tensors.check(problem)
    let heads = problem.batch * problem.keyValueHeads
    tensors.sinkGradient?.update(repeating: 0)
    if heads == 0 { return }
    let (units, columns) = (heads * parts, tensors.queryGradient == nil ? 0 : padded(problem.dimension))
    // Of all parts, which are added up in the end; or of a thread's unit, which is done with it.
    let ofParts = parts > 1 ? try FloatRooms(units, factors: [rows, columns]) : nil
    let ofThreads = try FloatRooms(
      min(threads, units), factors: [evenRows, GradientWorker.floatsOfRow(self) + (parts > 1 ? 0 : columns)])
    let operands = GradientOperands(tensors, heads: problem.batch * problem.queryHeads)
    defer { addSinkGradients(operands) }
    let taken = Atomic<Int>(0)
    WorkerTeam.run(items: units, threads: threads) { queue in
      let own = ofThreads[taken.add(1, ordering: .relaxed).oldValue]
      let worker = GradientWorker(self, room: own)
      let ofThread = own + evenRows * GradientWorker.floatsOfRow(self)
      while let unit = queue.next() {
        worker.compute(
          batch: unit / parts / problem.keyValueHeads, keyValueHead: unit / parts % problem.keyValueHeads,
          part: unit % parts, operands, sums: ofParts?[unit] ?? ofThread)
        if ofParts == nil { store(ofThread, ofHead: unit, operands) }
      }
    }
    guard let ofParts else { return }
    WorkerTeam.run(items: heads, threads: threads) { queue in
      while let head = queue.next() {
        let first = ofParts[head * parts]
        for part in 1..<parts {
          let other = ofParts[head * parts + part]
          for i in 0..<rows * columns { first[i] += other[i] }
        }
        store(first, ofHead: head, operands)
      }
    }
  }

  /// Writes the gradients of sinks: those of all batches, in their order.
  private func addSinkGradients(_ operands: GradientOperands) {
    guard let gradient = operands.tensors.sinkGradient, let parts = operands.ofSinks else { return }
    for head in 0..<problem.queryHeads {
      gradient[head] = Float((0..<problem.batch).reduce(0.0) { $0 + parts[$1 * problem.queryHeads + head] })
    }
  }

  /// Writes dQ of a (batch, key/value head), where it is wanted.
  private func store(_ sums: UnsafeMutablePointer<Float>, ofHead head: Int, _ operands: GradientOperands) {
    guard let gradient = operands.tensors.queryGradient else { return }
    let functions = instructionSet.functions
    let packed = PackedRows(
      problem: problem, batch: head / problem.keyValueHeads, keyValueHead: head % problem.keyValueHeads, rows: 0..<rows,
      ranges: nil)
    for row in 0..<rows {
      functions.pointee.store_scaled(
        sums + row * padded(problem.dimension), Float(problem.scale), Int32(problem.dimension),
        problem.scalarType.microkernelType,
        gradient.row(batch: packed.batch, head: packed.head(row), token: packed.query(row)))
    }
  }
}

extension CPUGradientPlan: CustomStringConvertible {
  /// All choices in one line.
  public var description: String {
    "CPU, \(instructionSet.name), \(WorkerTeam.description(threads: threads)): five products "
      + (elements == 1 ? "in f32" : "of bfloat16 pairs") + ", tiles of "
      + "\(Self.tile) rows and keys" + (parts == 1 ? "" : ", keys dealt out to \(parts) parts of each head")
  }
}

/// The tensors of a call, to be handed to threads: no two write the same rows.
final class GradientOperands: @unchecked Sendable {
  let tensors: GradientTensors<HostMemory>
  /// What each (batch, query head) adds to its sink's gradient; nil where nobody wants it.
  let ofSinks: UnsafeMutableBufferPointer<Double>?

  /// - Parameter heads: query heads of all batches.
  init(_ tensors: GradientTensors<HostMemory>, heads: Int) {
    self.tensors = tensors
    ofSinks = tensors.sinkGradient == nil ? nil : .allocate(capacity: heads)
    ofSinks?.initialize(repeating: 0)
  }

  deinit { ofSinks?.deallocate() }
}

/// Rooms of as many floats each, zeros at first, handed to threads of which no two have the same. Each begins with a line
/// of the cache.
final class FloatRooms: @unchecked Sendable {
  private static let line = 64
  private let memory: UnsafeMutableRawPointer
  private let base: UnsafeMutablePointer<Float>
  private let size: Int

  /// - Parameter factors: of the floats of a room.
  /// - Throws: `AttentionError.memory` where there is not so much.
  init(_ count: Int, factors: [Int]) throws(AttentionError) {
    let floats = checkedProduct(factors + [4]).map { ($0 / Self.line + 1) * (Self.line / 4) }
    let bytes = floats.flatMap { checkedProduct([$0, count, 4]) }
    guard let floats, let bytes, bytes <= .max - Self.line, let memory = calloc(bytes + Self.line, 1) else {
      throw .memory(what: "The gradients in f32", byteCount: bytes ?? .max)
    }
    (self.memory, size) = (memory, floats)
    base = memory.alignedUp(toMultipleOf: Self.line).assumingMemoryBound(to: Float.self)
  }

  deinit { free(memory) }

  subscript(room: Int) -> UnsafeMutablePointer<Float> { base + room * size }
}
