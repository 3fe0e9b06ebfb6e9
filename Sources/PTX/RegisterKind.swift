/// What a register holds, as the instructions see it.
public enum RegisterKind: UInt8, Hashable, Sendable, CaseIterable {
  case predicate
  /// 16 bits: one f16 or bf16, or two e4m3.
  case b16
  case u32, s32, u64, s64
  case f32
  /// Two 16-bit floats side by side, the first in the low half.
  case f16x2, bf16x2

  /// Storage classes of PTX: registers of one class may be mixed by any `.b` instruction.
  public enum Storage: UInt8, Hashable, Sendable, CaseIterable {
    case predicate, b16, b32, b64, f32

    /// The type in a register declaration.
    public var declaration: String {
      switch self {
      case .predicate: ".pred"
      case .b16: ".b16"
      case .b32: ".b32"
      case .b64: ".b64"
      case .f32: ".f32"
      }
    }

    /// The letter of registers without a name of their own.
    var letter: String {
      switch self {
      case .predicate: "p"
      case .b16: "h"
      case .b32: "r"
      case .b64: "d"
      case .f32: "f"
      }
    }
  }

  /// The class that a register of this kind is declared in.
  public var storage: Storage {
    switch self {
    case .predicate: .predicate
    case .b16: .b16
    case .u32, .s32, .f16x2, .bf16x2: .b32
    case .u64, .s64: .b64
    case .f32: .f32
    }
  }

  /// The suffix of arithmetic instructions.
  public var suffix: String {
    switch self {
    case .predicate: ".pred"
    case .b16: ".b16"
    case .u32: ".u32"
    case .s32: ".s32"
    case .u64: ".u64"
    case .s64: ".s64"
    case .f32: ".f32"
    case .f16x2: ".f16x2"
    case .bf16x2: ".bf16x2"
    }
  }

  /// The suffix of instructions that only move or combine bits.
  public var bitSuffix: String {
    switch storage {
    case .predicate: ".pred"
    case .b16: ".b16"
    case .b32: ".b32"
    case .b64: ".b64"
    case .f32: ".f32"
    }
  }

  /// Bytes in memory.
  public var byteCount: Int {
    switch storage {
    case .predicate: 0
    case .b16: 2
    case .b32, .f32: 4
    case .b64: 8
    }
  }
}

/// A type that registers are marked with. It exists for the compiler only; a register holds no value in Swift.
public protocol RegisterType {
  /// What the marked registers hold.
  static var kind: RegisterKind { get }
}

/// Types with whole-number arithmetic and comparison.
public protocol IntegerType: RegisterType {}
/// Types with floating-point arithmetic.
public protocol FloatType: RegisterType {}
/// Two 16-bit floats in a register.
public protocol PackedType: FloatType {}

/// True or false, one bit a lane.
public enum Bool1: RegisterType {
  /// What the marked registers hold.
  public static var kind: RegisterKind { .predicate }
}

/// 16 bits.
public enum B16: RegisterType {
  /// What the marked registers hold.
  public static var kind: RegisterKind { .b16 }
}

/// Unsigned 32-bit integers; also addresses in shared memory.
public enum U32: IntegerType {
  /// What the marked registers hold.
  public static var kind: RegisterKind { .u32 }
}

/// Signed 32-bit integers.
public enum S32: IntegerType {
  /// What the marked registers hold.
  public static var kind: RegisterKind { .s32 }
}

/// Unsigned 64-bit integers; also addresses in global memory.
public enum U64: IntegerType {
  /// What the marked registers hold.
  public static var kind: RegisterKind { .u64 }
}

/// Signed 64-bit integers.
public enum S64: IntegerType {
  /// What the marked registers hold.
  public static var kind: RegisterKind { .s64 }
}

/// 32-bit floats.
public enum F32: FloatType {
  /// What the marked registers hold.
  public static var kind: RegisterKind { .f32 }
}

/// Two f16.
public enum F16x2: PackedType {
  /// What the marked registers hold.
  public static var kind: RegisterKind { .f16x2 }
}

/// Two bf16.
public enum BF16x2: PackedType {
  /// What the marked registers hold.
  public static var kind: RegisterKind { .bf16x2 }
}
