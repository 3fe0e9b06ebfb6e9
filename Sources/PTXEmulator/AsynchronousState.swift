internal import PTX

/// What a warp does in the asynchronous proxy.
final class AsynchronousState {
  /// A product that was issued and not yet waited for.
  struct Product {
    let product: WarpgroupMatrix.Product
    let operation: Int32
    /// Descriptors, where the operands are in shared memory.
    let a, b: UInt64
    /// Whether D is added to.
    let adds: Bool
    /// The number of its group, which a commit ends.
    let group: Int32
    /// What it reads of shared memory.
    let reads: [Range<Int>]
  }

  /// Bytes that one lane sends from shared to global memory.
  struct Store {
    let lane: UInt8
    let operation: Int32
    let group: Int32
    /// Those that global memory has.
    let pieces: [Machine.Piece]
    /// What is added to what is there; nil where it is replaced.
    let addsIn: TensorMap.Element?
    let reads: [Range<Int>]
    /// The bytes, once they have been read.
    var bytes: [UInt8]?
  }

  /// Sums that products may add to one behind the other.
  struct SumList: Equatable {
    let registers: RegisterList
    let depth: Int
    let accumulator: Matrix.Accumulator

    init(_ product: WarpgroupMatrix.Product) {
      (registers, depth, accumulator) = (product.d, product.inputs.depth, product.accumulator)
    }
  }

  var products: [Product] = []
  var productGroups: Int32 = 0
  /// The place in the group's log.
  var groupSteps = 0
  /// Registers that products under way use: 1 accumulators, 2 operands.
  @exclusivity(unchecked) var busy: [UInt8]
  /// When each register was accessed last by an ordinary instruction, and when the last `wgmma.fence` was.
  @exclusivity(unchecked) var accesses: [UInt32]
  /// When a product last had it among its sums, and which sums those were: products of other sums need a fence behind.
  @exclusivity(unchecked) var sumTimes: [UInt32]
  @exclusivity(unchecked) var sumLists: [SumList?]
  @exclusivity(unchecked) var fence: UInt32 = 0
  @exclusivity(unchecked) var time: UInt32 = 1

  /// When lanes fenced their accesses for the asynchronous proxy, by the warp's clock, ascending.
  var proxyFences: [(clock: UInt32, lanes: UInt32)] = []

  var stores: [Store] = []
  var storeGroups = [Int32](repeating: 0, count: 32)

  /// Registers of a thread.
  var registerCount: Int
  /// Whether lanes may have left a wait apart, so that the next whole-warp instruction brings them together.
  var isApart = false

  init(_ program: Program) {
    busy = .init(repeating: 0, count: program.kernel.registers.count)
    accesses = .init(repeating: 0, count: program.kernel.registers.count)
    sumTimes = accesses
    sumLists = .init(repeating: nil, count: program.kernel.registers.count)
    registerCount = program.kernel.registersAtFirst
  }
}

/// What the four warps of a group do together, one after the other: each the same, with the same values.
struct GroupLog {
  struct Step: Equatable {
    let operation: Int32
    var a: UInt64 = 0
    var b: UInt64 = 0
    var adds = false
  }
  var steps: [Step] = []
}

/// What will happen to shared memory: a copy that lands, or an arrival behind copies.
struct Landing {
  enum What {
    /// Pieces that the copy engine brings to each of some blocks, with the bytes as they were at the issue.
    case copy(to: [Block], [Machine.Piece], [UInt8])
    /// The arrival of a lane when its copies by `cp.async` have landed, at the clock of the instruction.
    case arrival([Warp.Copy], clock: UInt32)
  }

  let what: What
  /// The barrier's address, and who started it.
  let barrier: Int
  let operation: Int32
  let block: Block
  let warp: Warp
  let lane: Int

  /// The blocks whose barriers are concerned.
  var blocks: [Block] { if case .copy(let blocks, _, _) = what { blocks } else { [block] } }
}
