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
      of ptxas, where it is on the PATH or in .venv.
      """)

  enum Example: String, CaseIterable, ExpressibleByArgument {
    case gemm, softmax
  }

  @OptionGroup(title: "Shape") var shape: ShapeOptions

  @OptionGroup(title: "Attention") var options: MaskOptions

  @OptionGroup var tiling: TilingOptions

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
    if example == nil { try printAttention(target) }
  }

  private func printAttention(_ target: Target?) throws {
    let plan = try reportingOptionErrors {
      let problem = try shape.problem(
        mask: options.mask, scale: options.scale, softcap: options.softcap, defaultType: .f16)
      return try ForwardPlan(
        problem, on: .typical(of: target ?? .sm80), changes: tiling.tiling)
    }
    if explain {
      print("\(plan)\n\(plan.explanation)")
      return
    }
    do throws(KernelError) {
      let text = try plan.kernel().text(target: target, locations: lines)
      print(text, terminator: "")
      let registers = PTXAssembler.find()?.assemble(text, for: target ?? .sm80)?.description
      printError(
        fields([
          ("problem", "\(plan.problem)"), ("plan", "\(plan)"),
          ("registers", registers ?? "not known: ptxas is neither on the PATH nor in .venv"),
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
    if let tiling, ForwardTiling().changed(by: tiling) == nil {
      throw ValidationError(
        "--tiling '\(tiling)' is not understood; write any of \(ForwardTiling.changeSyntax), with commas.")
    }
  }
}
