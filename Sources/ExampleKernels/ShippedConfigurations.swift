public import PTX

/// A kernel as it is shipped, with what it may cost.
public struct ShippedConfiguration: Sendable, CustomStringConvertible {
  /// For people and for test reports.
  public let name: String
  /// Registers of a thread at most; no spills are allowed.
  public let registerBudget: Int
  /// The kernel.
  public let kernel: Kernel

  /// The name.
  public var description: String { name }
}

/// The one list of kernels that `ptxas` judges in the tests: at most 150. (Of Hopper's, `HopperGEMMKernel.shipped`, the
/// tests also read the machine code.)
public enum ShippedConfigurations {
  /// All of them.
  public static func all() throws(KernelError) -> [ShippedConfiguration] {
    var list: [ShippedConfiguration] = []
    for stages in 2...4 {
      for inputs in Matrix.Inputs.allCases {
        let kernel = try GEMMKernel(stages: stages, inputs: inputs).kernel()
        list.append(ShippedConfiguration(name: kernel.name, registerBudget: 128, kernel: kernel))
      }
    }
    for threads in [32, 128, 1024] {
      let kernel = try SoftmaxKernel(threads: threads).kernel()
      list.append(ShippedConfiguration(name: kernel.name, registerBudget: 40, kernel: kernel))
    }
    return list
  }
}
