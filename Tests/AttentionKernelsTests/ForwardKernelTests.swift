import Attention
import AttentionKernels
import PTX
import PTXEmulator
import Testing
import flash_attention

@Suite struct ForwardKernelTests {
  @Test func first() throws {
    var total = 0.0
    for number in 0..<64 {
      let test = VerificationCase(seed: 0, number: number, kernels: 64)
      if test.problem.flops > 3e8 { continue }
      for change in ["stages=2", "stages=3"] {
        guard let plan = try? ForwardPlan(test.problem, on: .typical(of: .sm90), tiling: { $0.changed(by: change)! })
        else { print(number, "refused"); continue }
        let emulation = test.emulation(of: plan)
        let clock = ContinuousClock()
        var counters = Counters()
        do {
          let time = try clock.measure {
            counters = try Emulator.run(Program(try plan.kernel()), emulation.launch, memory: emulation.memory)
          }
          total += time / .seconds(1)
          let outcome = try #require(emulation.result.map(test.judge))
          if outcome.failure != nil || counters.bankConflicts != 0 {
            print(number, change, test.problem, test.family, time, counters.bankConflicts, outcome)
          }
        } catch let hazard as Hazard { print(number, change, test.problem, test.family, hazard) }
      }
    }
    print(total)
  }
}
