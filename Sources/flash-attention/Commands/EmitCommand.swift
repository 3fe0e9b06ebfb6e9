internal import ArgumentParser
internal import AttentionBenchmarks
internal import AttentionKernels
internal import AttentionVerification
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
    case hopperGEMM = "hopper-gemm"
  }

  @OptionGroup(title: "Shape") var shape: ShapeOptions

  @OptionGroup(title: "Attention") var options: MaskOptions

  @Option(
    help: ArgumentHelp(
      "Change the GPU's tiling, for experiments: any of \(TilingOptions.syntaxOfPrefill); with --cache any of "
        + "\(TilingOptions.syntaxOfDecoding); with --backward any of \(TilingOptions.syntaxOfGradients).",
      valueName: "CHANGES"))
  var tiling: String?

  @Flag(
    help:
      "The kernel that decodes, for packed queries over a cache of so many keys, on an sm_90 where no --arch is given; with sm_90a that of the plan."
  )
  var cache = false

  @Flag(help: "The kernels that compute gradients, each a text of its own behind the other.")
  var backward = false

  @Flag(help: ArgumentHelp(anyOrderHelp))
  var anyOrder = false

  @Option(help: "Sinks of this type: f32, f16 or bf16.")
  var sinks: ScalarType?

  @Option(help: ArgumentHelp("Given ranges of keys, 1 or 2 for each query.", valueName: "COUNT"))
  var keyRanges: Int?

  @Flag(help: "Keys that all queries of a sequence see, the first of it.")
  var prefix = false

  @Option(help: ArgumentHelp("So many first keys that all queries see beside a window.", valueName: "KEYS"))
  var firstKeys: Int?

  @Option(help: "An example instead of attention: gemm, softmax or hopper-gemm.")
  var example: Example?

  @Option(
    help:
      "The GPU to write for, such as sm_80; sm_90 for kernels that newer ones take, too, sm_90a for Hopper's own. (default: the oldest that has all instructions)"
  )
  var arch: String?

  @Flag(
    help:
      "Print why the plan has these kernels instead: all candidates of all families, ranked by their cost or refused.")
  var explain = false

  @Flag(help: "End each line with the Swift line that made it.")
  var lines = false

  func validate() throws {
    if let arch, Target(arch) == nil {
      throw ValidationError("'\(arch)' is no GPU architecture; write sm_80, sm_90a and the like.")
    }
    if example != nil && explain { throw ValidationError("--explain is for attention; an example has one tiling.") }
    if backward && (cache || example != nil) { throw ValidationError("--backward is for attention without a cache.") }
    if [keyRanges != nil, prefix, firstKeys != nil].count(where: { $0 }) > 1 {
      throw ValidationError("--key-ranges, --prefix and --first-keys are three ways of the same; give one.")
    }
    if anyOrder && !backward { throw ValidationError("--any-order is for gradients; give --backward too.") }
    if cache && example != nil { throw ValidationError("--cache is for attention; leave out --example.") }
    if let tiling {
      if backward {
        try TilingOptions.check(ofGradients: tiling, "with --backward, ")
        let isHoppers = (try? TilingChanges(tiling)).flatMap { BackwardTiling().changed(by: $0) } == nil
        if isHoppers { try requireHopper(for: tiling) }
      } else if cache {
        try TilingOptions.check(ofDecoding: tiling, "with --cache, ")
        let isHoppers = (try? TilingChanges(tiling)).flatMap { DecodeTiling().changed(by: $0) } == nil
        if isHoppers { try requireHopper(for: tiling) }
      } else {
        try TilingOptions.check(tiling)
        let isHoppers = (try? TilingChanges(tiling)).flatMap { ForwardTiling().changed(by: $0) } == nil
        if isHoppers { try requireHopper(for: tiling) }
      }
    }
    if example != nil && (shape.isGiven || shape.dtype != nil || options.isGiven || sinks != nil || ranges != nil) {
      throw ValidationError("An example has no shape; leave out --example or the shape.")
    }
  }

  private func requireHopper(for tiling: String) throws {
    if arch.flatMap(Target.init) != .sm90a && !explain {
      throw ValidationError("--tiling '\(tiling)' is for Hopper's own kernels; add --arch sm_90a.")
    }
  }

  func run() throws {
    let target = arch.flatMap(Target.init)
    do throws(KernelError) {
      switch example {
      case .gemm: print(try GEMMKernel().kernel().text(target: target, locations: lines), terminator: "")
      case .softmax: print(try SoftmaxKernel().kernel().text(target: target, locations: lines), terminator: "")
      case .hopperGEMM: print(try HopperGEMMKernel().kernel().text(target: target, locations: lines), terminator: "")
      case nil: break
      }
    } catch {
      throw ValidationError("\(error)")
    }
    if example == nil { try printAttention(target) }
  }

  private var ranges: KeyRanges.Form? {
    prefix ? .prefix : firstKeys.map { .firstKeys($0) } ?? keyRanges.map { .given(count: $0, isShared: false) }
  }

  private static func registers(_ text: String, _ target: Target) -> String {
    PTXAssembler.find()?.assemble(text, for: target)?.description
      ?? "not known: ptxas is neither on the PATH nor in .venv"
  }

  private func printAttention(_ target: Target?) throws {
    let gpu = GPULimits.typical(of: target ?? (cache ? .sm90 : .sm80))
    let (plan, choice) = try reportingOptionErrors {
      var problem = try shape.problem(
        mask: options.mask, scale: options.scale, softcap: options.softcap, defaultType: .f16)
      if cache {
        problem = try AttentionProblem(
          batch: problem.batch, queries: problem.queries, queryHeads: problem.queryHeads,
          keyValueHeads: problem.keyValueHeads, dimension: problem.dimension, valueDimension: problem.valueDimension,
          keys: .contiguous(sequences: problem.batch, capacity: problem.keys), scalarType: problem.scalarType,
          mask: problem.mask, scale: problem.scale, softcap: problem.softcap)
      }
      if anyOrder { problem.gradientOrder = .any }
      (problem.sinkType, problem.ranges) = (sinks, ranges)
      try problem.checkSinksAndRanges()
      // The table has all families; a text is of those that were asked for.
      let kernels = KernelOptions(
        family: cache && !explain && target != .sm90a ? DecodeFamily.name : nil,
        tiling: try tiling.map { try TilingChanges($0) })
      // A text for sm_90 is one that newer GPUs take, too; Hopper's own instructions are those of sm_90a.
      let isPortable = target.map { !$0.isSpecific } ?? false
      let families = (backward ? KernelFamilies.backward : KernelFamilies.all)
        .filter { explain || !isPortable || $0.architecture.isPortable }
        .filter { explain || !cache || $0 == DecodeFamily.self || $0 == HopperDecodeFamily.self }
      return (
        try KernelPlan(problem, on: gpu, options: kernels, families: families),
        try Choice(problem, on: gpu, options: kernels, families: families)
      )
    }
    if explain {
      print("\(plan)\n\(choice)")
      return
    }
    if backward { return try printGradients(plan, target, gpu) }
    do throws(KernelError) {
      let text = try plan.launches.attention.kernel.kernel().text(target: target, locations: lines)
      print(text, terminator: "")
      var facts = [
        ("problem", "\(plan.problem)"), ("plan", "\(plan)"), ("registers", Self.registers(text, gpu.target)),
      ]
      if plan.launches.launches.count > 1 {
        facts.append(("behind it", "a second launch puts the parts together; it is not printed"))
      }
      if !cache {
        facts.append(
          (
            "floor",
            "\(megabytes(Int(plan.problem.bytes))) to move, \(fixed(plan.problem.flops / 1e9, 1)) GFLOP to compute"
          ))
      }
      printError(fields(facts))
    } catch {
      throw ValidationError("\(error)")
    }
  }
}

extension EmitCommand {
  private func printGradients(_ plan: KernelPlan, _ target: Target?, _ gpu: GPULimits) throws {
    var facts = [("problem", "\(plan.problem)"), ("plan", "\(plan)")]
    do throws(KernelError) {
      for launch in plan.launches.launches {
        let text = try launch.kernel.kernel().text(target: target, locations: lines)
        print(text, terminator: "")
        facts.append((launch.kernel.name, "registers: " + Self.registers(text, gpu.target)))
      }
    } catch {
      throw ValidationError("\(error)")
    }
    printError(fields(facts))
  }
}

/// `--tiling`, for experiments.
struct TilingOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Change the GPU's tiling, for experiments: any of \(syntaxOfPrefill).", valueName: "CHANGES"))
  var tiling: String?

  func validate() throws {
    if let tiling { try Self.check(tiling) }
  }

  /// Of the kernels of prefill, whichever these are.
  static func check(_ tiling: String) throws { try check(tiling, ForwardTiling(), HopperForwardTiling(), "") }

  /// Of the kernels of gradients.
  static func check(ofGradients tiling: String, _ when: String = "") throws {
    try check(tiling, BackwardTiling(), HopperBackwardTiling(), when)
  }

  /// Of the kernels of decoding.
  static func check(ofDecoding tiling: String, _ when: String = "") throws {
    try check(tiling, DecodeTiling(), HopperDecodeTiling(), when)
  }

  private static func check<Own: KernelTiling, Hoppers: KernelTiling>(
    _ tiling: String, _ own: Own, _ hoppers: Hoppers, _ when: String
  ) throws {
    if let changes = try? TilingChanges(tiling), own.changed(by: changes) != nil || hoppers.changed(by: changes) != nil
    {
      return
    }
    throw ValidationError(
      "--tiling '\(tiling)' is not understood; \(when)write any of \(syntax(Own.self, Hoppers.self)).")
  }

  static let syntaxOfPrefill = syntax(ForwardTiling.self, HopperForwardTiling.self)
  static let syntaxOfGradients = syntax(BackwardTiling.self, HopperBackwardTiling.self)
  static let syntaxOfDecoding = syntax(DecodeTiling.self, HopperDecodeTiling.self)

  private static func syntax<Own: KernelTiling, Hoppers: KernelTiling>(_: Own.Type, _: Hoppers.Type) -> String {
    "\(Own.changeSyntax), with commas; for Hopper's own kernels any of \(Hoppers.changeSyntax)"
  }

  /// What it asks of a plan's kernels.
  var options: KernelOptions {
    get throws(AttentionError) {
      KernelOptions(tiling: try tiling.map { (text) throws(AttentionError) in try TilingChanges(text) })
    }
  }
}

/// Of the commands that know gradients.
let anyOrderHelp =
  "Gradients may be added up in any order, which is faster on a GPU; otherwise bits are the same in every run."
