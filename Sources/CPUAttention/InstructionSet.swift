internal import Attention
internal import CPUMicrokernels

/// One way of computing with this processor's vectors.
public struct InstructionSet: Sendable {
  /// The functions; a constant of the C target, hence safe to share.
  nonisolated(unsafe) let functions: UnsafePointer<CPUMicrokernels>

  /// "AVX-512 with bfloat16 pairs", "AVX-512", "AVX2", "NEON" or "portable".
  public var name: String { String(cString: functions.pointee.name) }

  /// Floats in a vector.
  public var lanes: Int { Int(functions.pointee.lanes) }

  /// Vectors across a full panel of query rows.
  var panelVectors: Int { Int(functions.pointee.panel_vectors) }

  /// Whether products of bfloat16 pairs are one instruction.
  public var hasPairs: Bool { functions.pointee.has_pairs != 0 }

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

  /// The best for this machine.
  public static var best: InstructionSet { available[0] }
}

extension ScalarType {
  /// The same type in the words of the C target.
  var microkernelType: FAScalarType {
    switch self {
    case .f32: FA_F32
    case .f16: FA_F16
    case .bf16: FA_BF16
    case .e4m3: preconditionFailure("No problem is computed in e4m3.")
    }
  }
}
