internal import ArgumentParser
internal import AttentionVerification
internal import FlashAttention
internal import TensorFiles

struct GenerateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "generate", abstract: "Write random queries, keys and values: standard normal, repeatable by seed.",
    discussion: DefaultType.ofFiles)

  @OptionGroup(title: "Shape") var shape: ShapeOptions

  @Option(help: "Order of the axes: bhnd or bnhd.")
  var layout = TensorLayout.bhnd

  @Option(help: "The same seed gives the same numbers.")
  var seed: UInt64 = 0

  @Option(name: [.customShort("o"), .long], help: "The .safetensors file to write, with tensors q, k and v.")
  var output: String

  func validate() throws {
    guard output.hasSuffix(".safetensors") else {
      throw ValidationError("The output '\(output)' must end in .safetensors.")
    }
  }

  func run() throws {
    let problem = try reportingOptionErrors {
      let problem = try shape.problem()
      // What could not be computed afterwards is not worth a file.
      _ = try AttentionPlan(problem, device: .cpu)
      return problem
    }
    try reportingFileErrors { try OutputFile.check(output) }
    try requireMemory(for: problem)
    var random = RandomSource(seed: seed)
    try reportingFileErrors {
      let tensors = try [("q", problem.queryShape), ("k", problem.keyShape), ("v", problem.valueShape)].map {
        (name: $0, array: StoredArray(try .normal($1, problem.scalarType, layout: layout, from: &random)))
      }
      try SafetensorsFile.write(tensors, metadata: ["layout": layout.rawValue, "seed": "\(seed)"], to: output)
    }
    print("\(output): q, k and v for \(problem)")
  }
}
