public import Attention
internal import CPUMicrokernels
internal import Synchronization

/// One way of computing with this processor's vectors.
public struct InstructionSet: Sendable {
  /// The functions; what the C target has of them before `main`, and never changes, hence safe to share.
  nonisolated(unsafe) let functions: UnsafePointer<CPUMicrokernels>

  /// "AMX with AVX-512", "AVX-512 with bfloat16 pairs", "AVX-512", "AVX2", "NEON with bfloat16 matrices", "NEON" or "portable".
  public var name: String { String(cString: functions.pointee.name) }

  /// What it is asked for by.
  var option: String { String(cString: functions.pointee.option) }

  /// Floats in a vector.
  public var lanes: Int { Int(functions.pointee.lanes) }

  /// Vectors across a full panel of query rows.
  var panelVectors: Int { Int(functions.pointee.panel_vectors) }

  /// Whether products of bfloat16 pairs are one instruction.
  public var hasPairs: Bool { functions.pointee.has_pairs != 0 }

  /// Whether many rows of bfloat16 are multiplied by whole tiles.
  public var hasTiles: Bool { functions.pointee.has_tiles != 0 }

  /// What this machine can run, best first; never empty.
  public static let available: [InstructionSet] = {
    var list: [InstructionSet] = []
    var entry = fa_cpu_microkernels()!
    while let functions = entry.pointee {
      list.append(InstructionSet(functions: functions))
      entry += 1
    }
    return list
  }()

  /// What plans take: the best for this machine, unless another was chosen.
  public static var best: InstructionSet { available[chosen.withLock { $0 }] }

  private static let chosen = Mutex(0)

  /// Has plans of this process that are made from now on take another one, to measure it; nil for the best.
  ///
  /// - Parameter option: "amx", "avx512bf16", "avx512", "avx2", "neonbf16", "neon" or "portable".
  /// - Throws: `AttentionError.unsupported` where this machine cannot run it.
  public static func choose(_ option: String?) throws(AttentionError) {
    let options = available.map(\.option)
    guard let number = option.map({ options.firstIndex(of: $0) }) ?? 0 else {
      throw .unsupported(
        "This machine has no vectors \"\(option ?? "")\"; it has \(options.joined(separator: ", ")).")
    }
    chosen.withLock { $0 = number }
  }
}

extension ScalarType {
  /// The same type in the words of the C target.
  var microkernelType: FAScalarType {
    switch self {
    case .f32: FA_F32
    case .f16: FA_F16
    case .bf16: FA_BF16
    case .e4m3: FA_E4M3
    }
  }
}
