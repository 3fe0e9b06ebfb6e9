public import Attention

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

  /// Columns of rows of so many elements.
  func padded(_ dimension: Int) -> Int {
    (dimension + instructionSet.lanes - 1) / instructionSet.lanes * instructionSet.lanes
  }

  /// Packed rows of a (batch, key/value head).
  var rows: Int { problem.groupSize * problem.queries }

  /// Computes the gradients of a problem with whole keys.
  ///
  /// - Throws: `AttentionError` where the tensors are not what was planned.
  public func run(_ tensors: GradientTensors<HostMemory>) throws(AttentionError) {
    try tensors.check(problem)
    let heads = problem.batch * problem.keyValueHeads
    if heads == 0 { return }
    let sums =
      parts > 1 && tensors.queryGradient != nil
      ? QuerySums(heads * parts, count: rows * padded(problem.dimension)) : nil
    let operands = GradientOperands(tensors)
    WorkerTeam.run(items: heads * parts, threads: threads) { queue in
      let worker = GradientWorker(self, hasQuerySums: sums == nil && operands.tensors.queryGradient != nil)
      while let unit = queue.next() {
        worker.compute(
          batch: unit / parts / problem.keyValueHeads, keyValueHead: unit / parts % problem.keyValueHeads,
          part: unit % parts, operands, sums: sums?.of(unit))
      }
    }
    guard let sums else { return }
    WorkerTeam.run(items: heads, threads: threads) { queue in
      let worker = GradientWorker(self, hasQuerySums: false)
      while let head = queue.next() {
        let first = sums.of(head * parts)
        for part in 1..<parts {
          let other = sums.of(head * parts + part)
          for i in 0..<rows * padded(problem.dimension) { first[i] += other[i] }
        }
        worker.storeQueryGradients(
          batch: head / problem.keyValueHeads, keyValueHead: head % problem.keyValueHeads, first, operands)
      }
    }
  }
}

extension CPUGradientPlan: CustomStringConvertible {
  /// All choices in one line.
  public var description: String {
    "CPU, \(instructionSet.name), \(threads) thread\(threads == 1 ? "" : "s"): five products in f32, tiles of "
      + "\(Self.tile) rows and keys" + (parts == 1 ? "" : ", keys dealt out to \(parts) parts of each head")
  }
}

/// The tensors of a call, to be handed to threads: no two write the same rows.
struct GradientOperands: @unchecked Sendable {
  let tensors: GradientTensors<HostMemory>

  init(_ tensors: GradientTensors<HostMemory>) { self.tensors = tensors }
}

/// dQ of units that have a part each, before they are added up.
final class QuerySums: @unchecked Sendable {
  private let base: UnsafeMutablePointer<Float>
  private let count: Int

  init(_ units: Int, count: Int) {
    self.count = count
    base = .allocate(capacity: max(units * count, 1))
  }

  deinit { base.deallocate() }

  /// A unit's own.
  func of(_ unit: Int) -> UnsafeMutablePointer<Float> { base + unit * count }
}
