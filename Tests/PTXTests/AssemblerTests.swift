import AttentionKernels
import AttentionVerification
import ExampleKernels
import PTX
import Testing

/// What `ptxas` thinks of our PTX. Skipped, by name, where there is none; CI has it and insists.
@Suite(
  .enabled(if: PTXAssembler.find() != nil, "ptxas is neither on the PATH nor in .venv (pip install nvidia-cuda-nvcc)"))
struct AssemblerTests {
  static let examples = try! ShippedConfigurations.all()
  static let attention = try! AttentionConfiguration.all()

  private func assemble(_ text: String, for target: Target) throws -> PTXAssembler.Report {
    try #require(PTXAssembler.find()?.assemble(text, for: target))
  }

  @Test func thereAreAtMost215Configurations() {
    #expect((50...215).contains(Self.examples.count + Self.attention.count))
    #expect(Set(Self.examples.map(\.name)).count == Self.examples.count)
    #expect(Set(Self.attention.map(\.description)).count == Self.attention.count)
  }

  /// All for sm_80 and sm_90a; every fifth also for the others.
  @Test(arguments: examples.indices)
  func isAcceptedWithinItsBudget(index: Int) throws {
    let configuration = Self.examples[index]
    let others = ["sm_86", "sm_89", "sm_100", "sm_120"].compactMap { Target($0) }
    for target in [.sm80, .sm90a] + (index % 5 == 0 ? others : []) {
      let report = try assemble(configuration.kernel.text(target: target), for: target)
      #expect(report.isAccepted, "\(configuration) for \(target): \(report.text)")
      #expect(report.registers <= configuration.registerBudget, "\(configuration) for \(target)")
      #expect(report.spilledBytes == 0, "\(configuration) for \(target)")
    }
  }

  /// As it is shipped: PTX for sm_80, assembled for the GPU whose tiling it has, without more spilled registers than it
  /// may have; every fifth also for newer GPUs.
  @Test(arguments: attention.indices)
  func attentionFitsTheRegisters(index: Int) throws {
    let configuration = Self.attention[index]
    let text = try configuration.kernel.text()
    #expect(text.contains(".target \(max(.sm80, configuration.kernel.requirement.target))"))
    let report = try assemble(text, for: configuration.target)
    #expect(report.isAccepted, "\(configuration): \(report.text)")
    #expect(
      report.spilledBytes <= configuration.spillAllowance, "\(configuration): \(report.spilledBytes) bytes spilled")
    if index % 5 == 0 {
      for newer in ["sm_100", "sm_120"].compactMap({ Target($0) }) {
        #expect(try assemble(text, for: newer).isAccepted, "\(configuration.kernel.name) for \(newer)")
      }
    }
  }

  /// Every instruction of the language, assembled for the oldest GPU that the table names for it.
  @Test func everyInstructionIsAccepted() throws {
    for kernel in [
      try InstructionCatalogue.ampere(), try InstructionCatalogue.ada(), try InstructionCatalogue.hopper(),
      try InstructionCatalogue.copies(), try InstructionCatalogue.warpgroups(.bf16, .f32),
      try InstructionCatalogue.warpgroups(.f16, .f32), try InstructionCatalogue.warpgroups(.f16, .f16),
      try InstructionCatalogue.warpgroups(.e4m3, .f32), try InstructionCatalogue.warpgroups(.e4m3, .f16),
    ] {
      let target = kernel.requirement.target
      let report = try assemble(kernel.text(), for: target)
      #expect(report.isAccepted, "\(kernel.name) for \(target): \(report.text)")
    }
  }

  /// What the table says is needed is needed: one GPU older, and ptxas refuses.
  @Test func theRequirementsAreNotTooStrict() throws {
    for (kernel, older) in [
      (try InstructionCatalogue.ada(), "sm_86"), (try InstructionCatalogue.hopper(), "sm_89"),
      (try InstructionCatalogue.copies(), "sm_89"), (try InstructionCatalogue.warpgroups(.bf16, .f32), "sm_90"),
    ] {
      let text = try kernel.text().replacing(".target \(kernel.requirement.target)", with: ".target \(older)")
      #expect(try !assemble(text, for: Target(older)!).isAccepted)
    }
  }
}
