internal import Attention

/// Where attention is computed.
public struct Device: Hashable, Sendable {
  private enum Kind: Hashable {
    case auto, cpu
    case gpu(Int)
  }

  private let kind: Kind

  /// The best there is for the problem; the plan says which, and why.
  public static let auto = Device(kind: .auto)
  /// This machine's processors.
  public static let cpu = Device(kind: .cpu)
  /// The first NVIDIA GPU.
  public static let gpu = gpu(0)
  /// An NVIDIA GPU, as CUDA counts them.
  public static func gpu(_ ordinal: Int) -> Device { Device(kind: .gpu(ordinal)) }

  /// Which GPU; nil for others than GPUs.
  public var ordinal: Int? { if case .gpu(let ordinal) = kind { ordinal } else { nil } }
}

extension Device: LosslessStringConvertible {
  /// Reads `auto`, `cpu`, `gpu` or `gpu:1`; nil for anything else.
  public init?(_ text: String) {
    switch text {
    case "auto": self = .auto
    case "cpu": self = .cpu
    case "gpu": self = .gpu
    default:
      guard text.hasPrefix("gpu:"), let ordinal = Int(text.dropFirst(4)), ordinal >= 0 else { return nil }
      self = .gpu(ordinal)
    }
  }

  /// As it is read.
  public var description: String {
    switch kind {
    case .auto: "auto"
    case .cpu: "cpu"
    case .gpu(let ordinal): ordinal == 0 ? "gpu" : "gpu:\(ordinal)"
    }
  }
}

extension Device {
  /// The path to take, and why, as a sentence: what was asked for, or the GPU where it takes the problem.
  func choose<Path>(
    for type: ScalarType, gpu: (_ ordinal: Int) throws(AttentionError) -> Path,
    cpu: () throws(AttentionError) -> Path
  ) throws(AttentionError) -> (path: Path, reason: String) {
    switch kind {
    case .cpu: return (try cpu(), "The CPU was asked for.")
    case .gpu(let ordinal): return (try gpu(ordinal), "The GPU was asked for.")
    case .auto:
      do throws(AttentionError) {
        return (try gpu(0), "The GPU was chosen, because there is one and it takes \(type).")
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
}
