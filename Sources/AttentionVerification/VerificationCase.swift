package import FlashAttention

/// A random problem with its inputs, wholly determined by a seed and its number.
package struct VerificationCase: Sendable {
  /// What the numbers are like.
  package enum Inputs: String, Sendable {
    case normal
    /// Scores of some hundreds before the scale, values in the hundreds.
    case huge
    /// All of Q, K and V far from zero, so that the scores are large and close together.
    case shifted
    /// A query agrees with one key, so that one weight is nearly 1.
    case oneHot
  }

  package let seed: UInt64
  package let number: Int
  package let family: CaseFamily
  package let problem: AttentionProblem
  package let inputs: Inputs
  package let queryPlacement: CaseTensor.Placement
  package let keyPlacement: CaseTensor.Placement
  package let valuePlacement: CaseTensor.Placement
  package let outputPlacement: CaseTensor.Placement
  /// NaN in all memory around the inputs.
  package let isPoisoned: Bool

  /// What the GPU's kernels are drawn from; nil for cases of the CPU, which has none to compile.
  let kernels: Int?

  /// Draws case `number`; the families take turns.
  ///
  /// - Parameter kernels: for a GPU, how many kernels the cases are spread over: what a kernel is made for is drawn by
  ///   `number % kernels`, everything else by `number`. The types are then 16 bits wide and all strides multiples of
  ///   16 bytes.
  package init(seed: UInt64, number: Int, kernels: Int? = nil) {
    var random = RandomSource(seed: seed, stream: UInt64(number))
    self.seed = seed
    self.number = number
    self.kernels = kernels
    let kernelNumber = number % (kernels ?? .max)
    family = CaseFamily.allCases[kernelNumber % CaseFamily.allCases.count]
    var draw = ProblemDraw(family: family, from: &random)
    if kernels != nil {
      var kernelRandom = RandomSource(seed: seed, stream: UInt64(kernelNumber))
      draw.takeKernel(
        of: ProblemDraw(family: family, from: &kernelRandom), prefersBF16: kernelNumber % 2 == 0,
        isLarge: kernelNumber % 8 == 7)
    }
    draw.limitWork()
    var problem = draw.problem
    problem.sinkType = kernelNumber % 4 == 3 ? .f32 : nil
    problem.ranges = .example(kernelNumber, problem.mask)
    self.problem = problem
    inputs = family == .magnitudes ? random.pick([.huge, .shifted, .oneHot]) : .normal
    isPoisoned = family == .nanTails || random.int(0...3) == 0

    let isStrided = family == .strides
    let isPoisoned = self.isPoisoned
    func placement(isInput: Bool) -> CaseTensor.Placement {
      var placement = CaseTensor.Placement(layout: random.pick(TensorLayout.allCases))
      if isStrided || isPoisoned {
        placement.rowGap = random.pick(kernels == nil ? [0, 0, 8, 3, 1] : [0, 0, 8, 16, 24])
      }
      if isPoisoned { placement.tail = random.int(1...70) }
      if isStrided {
        placement.isBackward = random.int(0...3) == 0
        placement.isBatchBroadcast = isInput && random.int(0...3) == 0
        placement.isHeadsBroadcast = isInput && random.int(0...3) == 0
      }
      return placement
    }
    queryPlacement = placement(isInput: true)
    keyPlacement = placement(isInput: true)
    valuePlacement = placement(isInput: true)
    outputPlacement = placement(isInput: false)
  }

  /// Queries that see no key.
  package var hasEmptyRow: Bool {
    (0..<problem.queries).contains { problem.seenKeys(byQuery: $0, sequence: 0, problem.exampleRanges).isEmpty }
  }

  /// NaN behind the last key of each sequence.
  package var hasNaNTail: Bool { isPoisoned && keyPlacement.tail > 0 && valuePlacement.tail > 0 }

  /// The command that runs this case alone, on the GPU that was asked for where it is one of a GPU's.
  package func command(device: Device) -> String {
    "flash-attention verify --seed \(seed) --only \(number)"
      + (kernels.map { " --device \(device) --kernels \($0)" } ?? "")
  }
}

/// The shape of a problem while it is drawn.
private struct ProblemDraw {
  var type: ScalarType
  var batch: Int
  var keyValueHeads: Int
  var group: Int
  var queries: Int
  var keys: Int
  var dimension: Int
  var valueDimension: Int
  var mask = AttentionMask.none
  var scale: Double?
  var softcap: Double?

  init(family: CaseFamily, from random: inout RandomSource) {
    type = random.pick(ScalarType.computed)
    batch = random.int(1...3)
    keyValueHeads = random.int(1...3)
    group = random.pick([1, 1, 2, 3, 4, 5, 8, 12, 16])
    queries = random.int(1...150)
    keys = random.int(1...300)
    dimension = random.pick([8, 16, 24, 32, 40, 64, 72, 80, 96, 104, 128, 160, 192, 248, 256])
    valueDimension = random.int(0...2) == 0 ? 8 * random.int(1...32) : dimension
    if random.int(0...3) == 0 { mask = .causal }

    switch family {
    case .shapes, .strides, .nanTails, .magnitudes:
      break
    case .masks:
      mask = random.pick([
        .causal, .window(left: random.int(0...80), right: random.int(0...80)),
        .window(left: random.int(0...200), right: 0), .window(left: nil, right: random.int(0...40)),
        .window(left: random.int(0...40), right: nil),
        .chunks(of: random.int(1...90), left: nil, right: random.pick([0, nil])),
      ])
    case .emptyRows:
      switch random.int(0...2) {
      case 0:
        (queries, mask) = (keys + random.int(1...100), .causal)
      case 1:
        queries = keys + random.int(50...100)
        mask = .window(left: random.int(0...10), right: random.int(0...10))
      default:
        keys = 0
      }
    case .longKeys:
      keys = random.int(512...2200)
      queries = random.int(9...120)
      mask = random.pick([.none, .causal, .window(left: random.int(100...1500), right: random.int(0...100))])
    case .decode:
      keys = random.int(1024...4000)
      queries = random.pick([1, 1, 1, 2, 3, 4])
      mask = random.pick([.none, .causal, .window(left: random.int(100...3000), right: 0)])
    case .scores:
      scale = random.pick([nil, 0.5, 1, -0.25, 0, 0.02])
      softcap = random.pick([nil, 0.5, 5, 30, 50])
    }
  }

  /// Takes over what a GPU kernel is made for: type, group, dimensions, the edges of the mask, whether there is a
  /// softcap, and the sign of the scale. Lengths, reaches and magnitudes stay.
  mutating func takeKernel(of other: ProblemDraw, prefersBF16: Bool, isLarge: Bool) {
    type = other.type == .f32 ? (prefersBF16 ? .bf16 : .f16) : other.type
    (group, dimension, valueDimension) = (other.group, other.dimension, other.valueDimension)
    if isLarge {
      // Beyond what one warp holds of O.
      (dimension, valueDimension) = (dimension + 256, valueDimension <= 64 ? valueDimension : valueDimension + 256)
    }
    if case .window(let left, let right) = other.mask, case .window(let ownLeft, let ownRight) = mask {
      mask = .window(left: left.map { ownLeft ?? $0 }, right: right.map { ownRight ?? $0 })
    } else {
      mask = other.mask
    }
    softcap = other.softcap.map { softcap ?? $0 }
    let isNegative = (other.scale ?? 1) < 0
    scale = isNegative ? -(scale ?? 0.25).magnitude : scale?.magnitude
    if isNegative && scale == 0 { scale = -0.25 }
  }

  /// Keeps the 64-bit reference within a fraction of a second: fewer sequences, heads and queries.
  mutating func limitWork() {
    var work: Int { batch * keyValueHeads * group * queries * max(keys, 1) * (dimension + valueDimension) }
    let limit = 30_000_000
    while work > limit && batch > 1 { batch -= 1 }
    while work > limit && keyValueHeads > 1 { keyValueHeads -= 1 }
    while work > limit && group > 1 { group -= 1 }
    while work > limit && queries > 8 { queries = queries / 2 + 1 }
  }

  var problem: AttentionProblem {
    let keyShape = TensorShape(batch: batch, heads: keyValueHeads, length: keys, dimension: dimension)
    var valueShape = keyShape
    valueShape.dimension = valueDimension
    // Every draw is valid; one that is not is a mistake here.
    return try! AttentionProblem(
      queries: TensorShape(batch: batch, heads: keyValueHeads * group, length: queries, dimension: dimension),
      keys: keyShape, values: valueShape, scalarType: type, mask: mask, scale: scale, softcap: softcap)
  }
}
