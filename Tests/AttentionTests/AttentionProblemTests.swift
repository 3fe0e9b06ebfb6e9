import Attention
import Testing

@Suite struct AttentionProblemTests {
  static func shape(_ b: Int, _ h: Int, _ n: Int, _ d: Int) -> TensorShape {
    TensorShape(batch: b, heads: h, length: n, dimension: d)
  }

  /// What is wrong with a problem, in the words a user reads.
  struct BadProblem: Sendable, CustomTestStringConvertible {
    var q = shape(1, 8, 16, 64)
    var k = shape(1, 8, 16, 64)
    var v = shape(1, 8, 16, 64)
    var mask = AttentionMask.none
    var scale: Double?
    var softcap: Double?
    let message: String
    var testDescription: String { message }
  }

  @Test(arguments: [
    BadProblem(
      q: shape(2, 8, 16, 64), message: "queries has batch 2, but keys has batch 1; they must be the same."),
    BadProblem(
      v: shape(1, 8, 17, 64), message: "keys has length 16, but values has length 17; they must be the same."),
    BadProblem(
      v: shape(1, 4, 16, 64), message: "keys has heads 8, but values has heads 4; they must be the same."),
    BadProblem(
      k: shape(1, 8, 16, 32), message: "queries has dimension 64, but keys has dimension 32; they must be the same."),
    BadProblem(
      q: shape(1, 9, 16, 64),
      message: "9 query heads cannot share 8 key/value heads evenly; the query heads must be a multiple of the "
        + "key/value heads."),
    BadProblem(q: shape(1, 8, 16, 0), message: "The dimension of queries is 0; it must be at least 1."),
    BadProblem(k: shape(1, 0, 16, 64), message: "The heads of keys is 0; it must be at least 1."),
    BadProblem(q: shape(1, 8, -1, 64), message: "The length of queries is -1; it must be 0 or more."),
    BadProblem(
      q: shape(1 << 40, 8, 1 << 30, 64),
      message: "queries (batch 1099511627776, heads 8, length 1073741824, dimension 64) has more elements than memory "
        + "can hold; check its extents."),
    // An empty axis hides no impossible one.
    BadProblem(
      q: shape(0, 1 << 62, 1 << 62, 8),
      message:
        "queries (batch 0, heads 4611686018427387904, length 4611686018427387904, dimension 8) has more elements "
        + "than memory can hold; check its extents."),
    BadProblem(
      scale: 1e300,
      message: "The scale is 1e+300; it must be a number that f32 can hold. Leave it out for 1/sqrt(dimension)."),
    BadProblem(
      softcap: 1e-46,
      message: "The softcap is 1e-46; it must be a number above 0 that f32 can hold. Leave it out for no cap."),
    BadProblem(
      softcap: 1e39,
      message: "The softcap is 1e+39; it must be a number above 0 that f32 can hold. Leave it out for no cap."),
    BadProblem(
      mask: .window(left: -3, right: nil),
      message: "The window reaches -3 keys to the left; it must be 0 or more, or unlimited."),
    BadProblem(
      mask: .window(left: 0, right: -1),
      message: "The window reaches -1 keys to the right; it must be 0 or more, or unlimited."),
    BadProblem(
      scale: .nan,
      message: "The scale is nan; it must be a number that f32 can hold. Leave it out for 1/sqrt(dimension)."),
    BadProblem(
      softcap: 0, message: "The softcap is 0.0; it must be a number above 0 that f32 can hold. Leave it out for no cap."
    ),
  ])
  func refusesInASentence(_ bad: BadProblem) {
    let error = #expect(throws: AttentionError.self) {
      try AttentionProblem(
        queries: bad.q, keys: bad.k, values: bad.v, scalarType: .f32, mask: bad.mask, scale: bad.scale,
        softcap: bad.softcap)
    }
    #expect(error?.description == bad.message)
  }

  /// The count of pairs has a closed form; here it is counted one by one.
  @Test(arguments: [(1, 1), (5, 9), (9, 5), (40, 3), (7, 0), (0, 7)])
  func flopsCountVisiblePairs(queries: Int, keys: Int) throws {
    let masks: [AttentionMask] = [
      .none, .causal, .window(left: 0, right: 0), .window(left: 2, right: nil), .window(left: nil, right: 3),
      .window(left: Int.max, right: Int.max), .window(left: 100, right: 1),
    ]
    for mask in masks {
      let problem = try AttentionProblem(
        queries: Self.shape(1, 1, queries, 8), keys: Self.shape(1, 1, keys, 8), values: Self.shape(1, 1, keys, 8),
        scalarType: .f32, mask: mask)
      let pairs = (0..<queries).reduce(0) { $0 + problem.visibleKeys(ofQuery: $1).count }
      #expect(problem.flops == Double(2 * 16 * pairs), "\(mask)")
    }
  }

  @Test func countsWorkAndBytes() throws {
    let problem = try AttentionProblem(
      queries: Self.shape(2, 8, 4, 64), keys: Self.shape(2, 2, 6, 64), values: Self.shape(2, 2, 6, 32),
      scalarType: .bf16, mask: .causal)
    #expect(problem.groupSize == 4)
    #expect(problem.scale == 0.125)
    // Queries 0...3 see 3, 4, 5 and 6 keys.
    #expect(problem.flops == 2 * (64 + 32) * 18 * 16)
    #expect(problem.bytes == Double(2 * (2 * 8 * 4 * 64 + 2 * 2 * 6 * 64 + 2 * 2 * 6 * 32 + 2 * 8 * 4 * 32)))
    #expect(problem.outputShape == Self.shape(2, 8, 4, 32))
    #expect(problem.description == "batch 2, heads 8/2, 4 queries x 6 keys, dimension 64 (values 32), bf16, causal")
  }
}
