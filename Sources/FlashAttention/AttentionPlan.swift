internal import CPUAttention
internal import CUDADriver

/// Where attention is computed.
public enum Device: String, Hashable, Sendable, CaseIterable {
  /// The best there is for the problem; the plan says which, and why.
  case auto
  /// This machine's processors.
  case cpu
  /// An NVIDIA GPU.
  case gpu
}

/// How a problem will be computed, decided once: make it, print it, run it as often as the shape occurs.
///
///     let plan = try AttentionPlan(problem)
///     print(plan)
///     try plan.run(queries: q, keys: k, values: v, output: o)
///
/// A plan is a value without mutable state; any number of tasks may run it at once.
public struct AttentionPlan: Sendable {
  /// What is computed.
  public let problem: AttentionProblem
  /// Why this device was chosen, as a sentence.
  public let reason: String
  let cpu: CPUPlan

  /// - Parameter threads: threads at most on the CPU, never more than processors; nil for one per processor.
  /// - Throws: `AttentionError.deviceUnavailable` for a GPU that cannot be used; `.dimension` for a head dimension that
  ///   the path does not take.
  public init(_ problem: AttentionProblem, device: Device = .auto, threads: Int? = nil) throws(AttentionError) {
    self.problem = problem
    switch device {
    case .cpu: reason = "The CPU was asked for."
    case .auto: reason = "The CPU was chosen, because \(GPUSupport.absence)"
    case .gpu: throw .deviceUnavailable(device: "GPU", reason: GPUSupport.absence)
    }
    cpu = try CPUPlan(problem, threads: min(threads ?? .max, WorkerTeam.processors))
  }

  /// Computes the problem on borrowed memory; nothing is copied.
  ///
  /// - Parameters:
  ///   - queries: `[B, H_q, N_q, D]`; strides of any kind, unit stride along D.
  ///   - keys: `[B, H_kv, N_k, D]`.
  ///   - values: `[B, H_kv, N_k, D_v]`.
  ///   - output: `[B, H_q, N_q, D_v]`; overwritten.
  ///   - logSumExp: `[B, H_q, N_q]` contiguous f32, natural logarithm, scale included; nil where it is not needed.
  /// - Throws: `AttentionError` where a view is not what the plan was made for.
  public func run(
    queries: TensorView, keys: TensorView, values: TensorView, output: MutableTensorView,
    logSumExp: UnsafeMutableBufferPointer<Float>? = nil
  ) throws(AttentionError) {
    try cpu.run(queries: queries, keys: keys, values: values, output: output, logSumExp: logSumExp)
  }

  /// Bytes of scratch memory that each thread needs; independent of the lengths.
  public var scratchByteCount: Int { cpu.scratchByteCount }
}

extension AttentionPlan: CustomStringConvertible {
  /// Which path runs and why, in two lines.
  public var description: String { "\(cpu)\n\(reason)" }
}

/// What there is to say of GPUs on this machine.
public enum GPUSupport {
  /// One line about the driver and its devices, or why there is none.
  public static var summary: String {
    do {
      let driver = try DriverPresence.find()
      let version = "\(driver.version / 1000).\(driver.version % 1000 / 10)"
      return "\(driver.devices.joined(separator: ", ")) (driver for CUDA \(version)); this version of the library "
        + "has no GPU kernels yet."
    } catch {
      return "none: \(error)"
    }
  }

  /// Why no GPU is used, as the rest of a sentence.
  static var absence: String {
    do {
      _ = try DriverPresence.find()
      return "this version of the library has no GPU kernels yet."
    } catch {
      return error.description
    }
  }
}
