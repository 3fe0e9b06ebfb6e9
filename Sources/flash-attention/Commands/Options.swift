public import ArgumentParser
internal import AttentionKernels
public import FlashAttention

extension ScalarType: ExpressibleByArgument {
  /// For shells.
  public static var defaultCompletionKind: CompletionKind { .list((computed + [.e4m3]).map(\.rawValue)) }
}
extension TensorLayout: ExpressibleByArgument {}

extension Device: ExpressibleByArgument {
  /// `auto`, `cpu`, `gpu` or `gpu:1`.
  public init?(argument: String) { self.init(argument) }

  /// For help and errors.
  public static var allValueStrings: [String] { ["auto", "cpu", "gpu", "gpu:1"] }

  /// For shells; not "gpu:1", whose colon begins a description in zsh.
  public static var defaultCompletionKind: CompletionKind { .list(["auto", "cpu", "gpu"]) }
}

extension Rung: ExpressibleByArgument {
  /// The rung of a name such as `split-q-shared-kv`.
  init?(argument: String) {
    guard let rung = Self.allCases.first(where: { $0.description == argument }) else { return nil }
    self = rung
  }

  /// All names, for help and errors.
  static var allValueStrings: [String] { allCases.map(\.description) }
}

/// `--causal --window --scale --softcap`.
struct MaskOptions: ParsableArguments {
  @Flag(help: "A query sees the keys up to its own position; the last query stands on the last key.")
  var causal = false

  @Option(
    parsing: .unconditional,
    help: ArgumentHelp(
      "A query sees LEFT keys before and RIGHT keys after its own position; an empty side, or -1, is unlimited: 128,0 or ,0.",
      valueName: "LEFT,RIGHT"),
    transform: Window.init(argument:))
  var window: Window?

  @Option(
    parsing: .unconditional,
    help: ArgumentHelp("Cut the keys into chunks; a query sees only the one that it stands in.", valueName: "KEYS"))
  var chunk: Int?

  @Option(parsing: .unconditional, help: "What scores are multiplied by. (default: 1/sqrt(dimension))")
  var scale: Double?

  @Option(parsing: .unconditional, help: "Cap scores smoothly: c * tanh(score / c).")
  var softcap: Double?

  var mask: AttentionMask {
    var mask: AttentionMask = window.map { .window(left: $0.left, right: $0.right) } ?? .none
    if let chunk { mask = .chunks(of: chunk, left: window?.left, right: window?.right) }
    return causal ? mask.andCausal : mask
  }

  /// Whether any of them was given.
  var isGiven: Bool { causal || window != nil || chunk != nil || scale != nil || softcap != nil }

  /// The numbers by themselves: on the smallest problem.
  func validate() throws {
    let shape = TensorShape(batch: 1, heads: 1, length: 1, dimension: 8)
    do throws(AttentionError) {
      _ = try AttentionProblem(
        queries: shape, keys: shape, values: shape, scalarType: .f32, mask: mask, scale: scale, softcap: softcap)
    } catch {
      throw ValidationError("\(error)")
    }
  }
}

/// The value of `--window`.
struct Window: Hashable, Sendable {
  let left: Int?
  let right: Int?

  init(argument: String) throws {
    let sides = argument.split(separator: ",", omittingEmptySubsequences: false)
    guard sides.count == 2 else {
      throw ValidationError("a window is LEFT,RIGHT with one comma, such as 128,0; an empty side is unlimited.")
    }
    left = try Self.side(sides[0])
    right = try Self.side(sides[1])
  }

  private static func side(_ text: Substring) throws -> Int? {
    // -1 is how FlashAttention's own functions write it.
    if text.isEmpty || text == "-1" { return nil }
    guard let value = Int(text), value >= 0 else {
      throw ValidationError("'\(text)' is not a number of keys, 0 or more.")
    }
    return value
  }
}

/// What `--dtype` is where it is not given, for the help of commands, which differ in it.
enum DefaultType {
  static let ofFiles = "Elements are f32 unless --dtype says otherwise."
  static let ofKernels = "Elements are f16 unless --dtype says otherwise."
  static let ofTuning = "Elements are bf16 unless --dtype says otherwise."
  static let ofBenchmarks = "Elements of a shape are f32, and bf16 with --device gpu, unless --dtype says otherwise."
}

/// The options of one shape.
typealias ShapeOptions = Shape<Int, ScalarType>
/// The same, each with one value or several.
typealias SweepOptions = Shape<Values<Int>, Values<ScalarType>>

/// Values with commas between them.
struct Values<Value: ExpressibleByArgument & Sendable>: ExpressibleByArgument, Sendable {
  let all: [Value]

  init?(argument: String) {
    all = argument.split(separator: ",", omittingEmptySubsequences: false).compactMap { Value(argument: String($0)) }
    if all.isEmpty || all.count != argument.count(where: { $0 == "," }) + 1 { return nil }
  }

  static var allValueStrings: [String] { Value.allValueStrings }
}

/// `--batch --query-heads --kv-heads --queries --keys --dim --value-dim --dtype`.
struct Shape<Number: ExpressibleByArgument, ElementType: ExpressibleByArgument>: ParsableArguments {
  @Option(parsing: .unconditional, help: "Independent sequences. (default: 1)")
  var batch: Number?

  @Option(parsing: .unconditional, help: "Query heads. (default: 8)")
  var queryHeads: Number?

  @Option(
    parsing: .unconditional, help: "Key/value heads; the query heads are a multiple of them. (default: the query heads)"
  )
  var kvHeads: Number?

  @Option(parsing: .unconditional, help: "Queries of each sequence. (default: 1024)")
  var queries: Number?

  @Option(parsing: .unconditional, help: "Keys of each sequence. (default: the queries)")
  var keys: Number?

  @Option(parsing: .unconditional, help: "Head dimension: a multiple of 8. (default: 64)")
  var dim: Number?

  @Option(parsing: .unconditional, help: "Head dimension of the values. (default: the head dimension)")
  var valueDim: Number?

  @Option(help: "Element type: f32, f16 or bf16. (default: what the command says)")
  var dtype: ElementType?

  /// Whether a shape was given at all; the type alone is none.
  var isGiven: Bool {
    [batch, queryHeads, kvHeads, queries, keys, dim, valueDim].contains { $0 != nil }
  }
}

extension Shape where Number == Int, ElementType == ScalarType {
  /// Without any option: those of a value that no command line was parsed for cannot be read until they are set.
  static var none: ShapeOptions {
    var shape = ShapeOptions()
    (shape.batch, shape.queryHeads, shape.kvHeads, shape.queries, shape.keys) = (nil, nil, nil, nil, nil)
    (shape.dim, shape.valueDim, shape.dtype) = (nil, nil, nil)
    return shape
  }

  func problem(
    mask: AttentionMask = .none, scale: Double? = nil, softcap: Double? = nil, defaultType: ScalarType = .f32
  ) throws -> AttentionProblem {
    let queryShape = TensorShape(
      batch: batch ?? 1, heads: queryHeads ?? 8, length: queries ?? 1024, dimension: dim ?? 64)
    let keyShape = TensorShape(
      batch: queryShape.batch, heads: kvHeads ?? queryShape.heads, length: keys ?? queryShape.length,
      dimension: queryShape.dimension)
    var valueShape = keyShape
    valueShape.dimension = valueDim ?? keyShape.dimension
    return try AttentionProblem(
      queries: queryShape, keys: keyShape, values: valueShape, scalarType: dtype ?? defaultType, mask: mask,
      scale: scale,
      softcap: softcap)
  }
}

extension Shape where Number == Values<Int>, ElementType == Values<ScalarType> {
  /// All combinations, one value of each option.
  func shapes() -> [ShapeOptions] {
    func each<Value>(
      _ values: Values<Value>?, _ option: WritableKeyPath<ShapeOptions, Value?>, of shapes: [ShapeOptions]
    ) -> [ShapeOptions] {
      guard let values else { return shapes }
      return shapes.flatMap { shape in
        values.all.map {
          var shape = shape
          shape[keyPath: option] = $0
          return shape
        }
      }
    }
    var shapes = each(dtype, \.dtype, of: [ShapeOptions.none])
    let options: [(Values<Int>?, WritableKeyPath<ShapeOptions, Int?>)] = [
      (dim, \.dim), (valueDim, \.valueDim), (batch, \.batch), (queryHeads, \.queryHeads), (kvHeads, \.kvHeads),
      (queries, \.queries), (keys, \.keys),
    ]
    for (values, option) in options { shapes = each(values, option, of: shapes) }
    return shapes
  }
}

/// Which of the CPU's vector instructions.
struct VectorsOption: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "On the CPU, use these vector instructions: amx, avx512bf16, avx512, avx2, neonbf16, neon or portable. (default: the best of the machine)",
      valueName: "NAME"))
  var vectors: String?

  /// Has all plans use them.
  ///
  /// - Throws: `ValidationError` where the machine has none such, or where the CPU is not what computes.
  func choose(for device: Device) throws {
    guard let vectors else { return }
    if device != .cpu { throw ValidationError("--vectors is for the CPU; give --device cpu with it, or leave it out.") }
    do { try Machine.chooseInstructionSet(vectors) } catch { throw ValidationError("--vectors: \(error)") }
  }
}
