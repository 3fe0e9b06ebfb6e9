internal import ArgumentParser
internal import AttentionKernels
internal import ExampleKernels
internal import FlashAttention
internal import PTX

struct EmitCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "emit", abstract: "Print a GPU kernel as PTX, as the driver or ptxas would take it.",
    discussion: """
      The kernel is that of the plan for a shape, which is printed on standard error with its budget; registers are those \
      of ptxas, where it is on the PATH or in .venv. \(DefaultType.ofKernels)
      """)

  enum Example: String, CaseIterable, ExpressibleByArgument {
    case gemm, softmax
  }

  @OptionGroup(title: "Shape") var shape: ShapeOptions

  @OptionGroup(title: "Attention") var options: MaskOptions

  @Option(
    help: ArgumentHelp(
      "Change the GPU's tiling, for experiments: any of \(ForwardTiling.changeSyntax), with commas; with --cache any of "
        + "\(DecodeTiling.changeSyntax).", valueName: "CHANGES"))
  var tiling: String?

  @Flag(
    help:
      "The kernel that decodes, for packed queries over a cache of so many keys, on an sm_90 where no --arch is given.")
  var cache = false

  @Option(help: "An example instead of attention: gemm or softmax.")
  var example: Example?

  @Option(help: "The GPU to write for, such as sm_80 or sm_90a. (default: the oldest that has all instructions)")
  var arch: String?

  @Flag(help: "Print why the plan has this tiling instead: all candidates, ranked by the cost model or refused.")
  var explain = false

  @Flag(help: "End each line with the Swift line that made it.")
  var lines = false

  func validate() throws {
    if let arch, Target(arch) == nil {
      throw ValidationError("'\(arch)' is no GPU architecture; write sm_80, sm_90a and the like.")
    }
    if example != nil && explain { throw ValidationError("--explain is for attention; an example has one tiling.") }
    if cache && (example != nil || explain) {
      throw ValidationError(
        "--cache goes without --example and --explain; bench decode --explain tells how work is cut.")
    }
    if let tiling, !cache {
      try TilingOptions.check(tiling)
    } else if let tiling, DecodeTiling().changed(by: tiling) == nil {
      throw ValidationError(
        "--tiling '\(tiling)' is not understood; with --cache, write any of \(DecodeTiling.changeSyntax), with commas.")
    }
    if example != nil && (shape.isGiven || shape.dtype != nil || options.isGiven) {
      throw ValidationError("An example has no shape; leave out --example or the shape.")
    }
  }

  func run() throws {
    let target = arch.flatMap(Target.init)
    do throws(KernelError) {
      switch example {
      case .gemm: print(try GEMMKernel().kernel().text(target: target, locations: lines), terminator: "")
      case .softmax: print(try SoftmaxKernel().kernel().text(target: target, locations: lines), terminator: "")
      case nil: break
      }
    } catch {
      throw ValidationError("\(error)")
    }
    if cache { try printDecoding(target) } else if example == nil { try printAttention(target) }
  }

  private func printDecoding(_ target: Target?) throws {
    let plan = try reportingOptionErrors {
      let problem = try shape.problem(
        mask: options.mask, scale: options.scale, softcap: options.softcap, defaultType: .f16)
      let cached = try CachedAttentionProblem(
        batch: problem.batch, queries: problem.queries, queryHeads: problem.queryHeads,
        keyValueHeads: problem.keyValueHeads, dimension: problem.dimension, valueDimension: problem.valueDimension,
        cache: .contiguous(sequences: problem.batch, capacity: problem.keys), scalarType: problem.scalarType,
        mask: problem.mask, scale: problem.scale, softcap: problem.softcap)
      return try DecodePlan(cached, on: .typical(of: target ?? .sm90), changes: tiling)
    }
    do throws(KernelError) {
      let text = try plan.kernel().text(target: target, locations: lines)
      print(text, terminator: "")
      printError(
        fields(
          [
            ("problem", "\(plan.problem)"), ("plan", "\(plan)"), ("registers", Self.registers(text, target ?? .sm90)),
          ]
            + (plan.launch.combineBlocks == 0
              ? [] : [("behind it", "a second launch puts the parts together; it is not printed")])))
    } catch {
      throw ValidationError("\(error)")
    }
  }

  private static func registers(_ text: String, _ target: Target) -> String {
    PTXAssembler.find()?.assemble(text, for: target)?.description
      ?? "not known: ptxas is neither on the PATH nor in .venv"
  }

  private func printAttention(_ target: Target?) throws {
    let plan = try reportingOptionErrors {
      let problem = try shape.problem(
        mask: options.mask, scale: options.scale, softcap: options.softcap, defaultType: .f16)
      return try ForwardPlan(
        problem, on: .typical(of: target ?? .sm80), changes: tiling)
    }
    if explain {
      print("\(plan)\n\(plan.explanation)")
      return
    }
    do throws(KernelError) {
      let text = try plan.kernel().text(target: target, locations: lines)
      print(text, terminator: "")
      printError(
        fields([
          ("problem", "\(plan.problem)"), ("plan", "\(plan)"),
          ("registers", Self.registers(text, target ?? .sm80)),
          (
            "floor",
            "\(megabytes(Int(plan.problem.bytes))) to move, \(fixed(plan.problem.flops / 1e9, 1)) GFLOP to compute"
          ),
        ]))
    } catch {
      throw ValidationError("\(error)")
    }
  }
}

/// `--tiling`, for experiments.
struct TilingOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Change the GPU's tiling, for experiments: any of \(ForwardTiling.changeSyntax), with commas.",
      valueName: "CHANGES"))
  var tiling: String?

  func validate() throws {
    if let tiling { try Self.check(tiling) }
  }

  static func check(_ tiling: String) throws {
    if ForwardTiling().changed(by: tiling) == nil {
      throw ValidationError(
        "--tiling '\(tiling)' is not understood; write any of \(ForwardTiling.changeSyntax), with commas.")
    }
  }
}
