import CPUMicrokernels
import TileModel

@testable import CPUAttention

extension InstructionSet {
  /// What this machine can run, and AMX on a model of its instructions, where the rest of it can.
  static let tested = available + [tileModel].compactMap { $0 }

  /// The functions for AMX, on a model of its instructions; nil without what they need beside.
  static let tileModel: InstructionSet? =
    available.first { $0.hasPairs && !$0.hasTiles }.flatMap { fa_tile_model($0.functions) }.map {
      InstructionSet(functions: $0.assumingMemoryBound(to: CPUMicrokernels.self))
    }
}
