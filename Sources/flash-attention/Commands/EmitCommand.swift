internal import ArgumentParser
internal import ExampleKernels
internal import PTX

struct EmitCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "emit", abstract: "Print a GPU kernel as PTX, as the driver or ptxas would take it.")

  enum Example: String, CaseIterable, ExpressibleByArgument {
    case gemm, softmax
  }

  @Option(help: "Which example: gemm or softmax.")
  var example: Example

  @Option(help: "The GPU to write for, such as sm_80 or sm_90a. (default: the oldest that has all instructions)")
  var arch: String?

  @Flag(help: "End each line with the Swift line that made it.")
  var lines = false

  func validate() throws {
    if let arch, Target(arch) == nil {
      throw ValidationError("'\(arch)' is no GPU architecture; write sm_80, sm_90a and the like.")
    }
  }

  func run() throws {
    do throws(KernelError) {
      let kernel =
        switch example {
        case .gemm: try GEMMKernel().kernel()
        case .softmax: try SoftmaxKernel().kernel()
        }
      print(try kernel.text(target: arch.flatMap(Target.init), locations: lines), terminator: "")
    } catch {
      throw ValidationError("\(error)")
    }
  }
}
