import ExampleKernels
import PTX
import Testing

/// What `ptxas` thinks of our PTX. Skipped, by name, where there is none; CI has it and insists.
@Suite(
  .enabled(if: PTXAssembler.found != nil, "ptxas is neither on the PATH nor in .venv (pip install nvidia-cuda-nvcc)"))
struct AssemblerTests {
  static let configurations = try! ShippedConfigurations.all()

  @Test func thereAreAtMost150Configurations() {
    #expect((1...150).contains(Self.configurations.count))
    #expect(Set(Self.configurations.map(\.name)).count == Self.configurations.count)
  }

  /// All for sm_80 and sm_90a; every fifth also for the others.
  @Test(arguments: configurations.indices)
  func isAcceptedWithinItsBudget(index: Int) throws {
    let configuration = Self.configurations[index]
    let others = ["sm_86", "sm_89", "sm_100", "sm_120"].compactMap { Target($0) }
    for target in [.sm80, .sm90a] + (index % 5 == 0 ? others : []) {
      let report = try PTXAssembler.found!.assemble(configuration.kernel.text(target: target), for: target)
      #expect(report.isAccepted, "\(configuration) for \(target): \(report.text)")
      #expect(report.registers <= configuration.registerBudget, "\(configuration) for \(target)")
      #expect(report.spilledBytes == 0, "\(configuration) for \(target)")
    }
  }

  /// Every instruction of the language, assembled for the oldest GPU that the table names for it.
  @Test func everyInstructionIsAccepted() throws {
    for kernel in [
      try InstructionCatalogue.ampere(), try InstructionCatalogue.ada(), try InstructionCatalogue.hopper(),
    ] {
      let target = kernel.requirement.target
      let report = try PTXAssembler.found!.assemble(kernel.text(), for: target)
      #expect(report.isAccepted, "\(kernel.name) for \(target): \(report.text)")
    }
  }

  /// What the table says is needed is needed: one GPU older, and ptxas refuses.
  @Test func theRequirementsAreNotTooStrict() throws {
    for (kernel, older) in [(try InstructionCatalogue.ada(), "sm_86"), (try InstructionCatalogue.hopper(), "sm_89")] {
      let text = try kernel.text().replacing(".target \(kernel.requirement.target)", with: ".target \(older)")
      #expect(try !PTXAssembler.found!.assemble(text, for: Target(older)!).isAccepted)
    }
  }
}
