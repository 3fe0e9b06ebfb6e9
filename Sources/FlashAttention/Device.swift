/// Where attention is computed.
public enum Device: String, Hashable, Sendable, CaseIterable {
  /// The best there is for the problem; the plan says which, and why.
  case auto
  /// This machine's processors.
  case cpu
  /// An NVIDIA GPU.
  case gpu
}

extension Device {
  /// The path to take, and why, as a sentence: what was asked for, or the GPU where it takes the problem.
  func choose<Path>(
    for type: ScalarType, gpu: () throws(AttentionError) -> Path, cpu: () throws(AttentionError) -> Path
  ) throws(AttentionError) -> (path: Path, reason: String) {
    switch self {
    case .cpu: return (try cpu(), "The CPU was asked for.")
    case .gpu: return (try gpu(), "The GPU was asked for.")
    case .auto:
      do throws(AttentionError) {
        return (try gpu(), "The GPU was chosen, because there is one and it takes \(type).")
      } catch {
        let why =
          switch error {
          case .deviceUnavailable(_, let reason): reason
          case .typeOnDevice: "the GPU takes f16 and bf16, and this is \(type)."
          default: "the GPU does not take this: \(error)"
          }
        return (try cpu(), "The CPU was chosen, because \(why)")
      }
    }
  }

  /// - Throws: `AttentionError.tiling` for a tiling on the CPU, which has none.
  static func refuse(tilingOnCPU tiling: String?) throws(AttentionError) {
    if let tiling { throw .tiling(tiling, reason: "is for the kernels of GPUs; leave it out on the CPU") }
  }
}
