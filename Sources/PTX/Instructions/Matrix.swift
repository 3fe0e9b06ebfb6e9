/// Products on the tensor cores and the loads that feed them (sections 9.7.14.5, mma and ldmatrix).
///
/// Fragments of m16n8k16, of lane l with g = l / 4 and t = l % 4 (all registers hold two neighbours):
///
///     A 16 x 16   a0 (g, 2t)   a1 (g+8, 2t)   a2 (g, 2t+8)   a3 (g+8, 2t+8)
///     B 16 x 8    b0 (2t, g)   b1 (2t+8, g)            pairs run along k
///     C, D f32    c0, c1 (g, 2t and 2t+1)   c2, c3 (g+8, 2t and 2t+1)
///     C, D f16    c0 (g, 2t)   c1 (g+8, 2t)
public enum Matrix: Hashable, Sendable {
  /// Reads `d.count` (1, 2, 4) 8 x 8 matrices of 16-bit elements; lane 8i + r gives the address of row r of matrix i.
  case load(isTransposed: Bool, d: RegisterGroup, address: RegisterID, offset: Int32)
  /// Writes as many matrices; lane 8i + r gives the address of row r of matrix i (section 9.7.14.5.17, stmatrix).
  case store(isTransposed: Bool, values: RegisterGroup, address: RegisterID, offset: Int32)
  /// `d = a b + c` of one 16 x 8 tile, k 16.
  case multiplyAdd(Inputs, Accumulator, d: RegisterGroup, a: RegisterGroup, b: RegisterGroup, c: RegisterGroup)

  /// The type of A and B.
  public enum Inputs: String, Hashable, Sendable, CaseIterable {
    case f16, bf16
  }

  /// The type of C and D.
  public enum Accumulator: String, Hashable, Sendable, CaseIterable {
    case f32, f16
  }

  func text(_ name: TextNames) -> String {
    switch self {
    case .load(let isTransposed, let d, let address, let offset):
      let registers = d.count == 1 ? "{\(name(d))}" : name(d)
      return
        "ldmatrix.sync.aligned.m8n8.x\(d.count)\(isTransposed ? ".trans" : "").shared.b16 \(registers), \(name.place(address, offset))"
    case .store(let isTransposed, let values, let address, let offset):
      let registers = values.count == 1 ? "{\(name(values))}" : name(values)
      return
        "stmatrix.sync.aligned.m8n8.x\(values.count)\(isTransposed ? ".trans" : "").shared.b16 \(name.place(address, offset)), \(registers)"
    case .multiplyAdd(let inputs, let accumulator, let d, let a, let b, let c):
      let (i, o) = (inputs.rawValue, accumulator.rawValue)
      return "mma.sync.aligned.m16n8k16.row.col.\(o).\(i).\(i).\(o) \(name(d)), \(name(a)), \(name(b)), \(name(c))"
    }
  }
}
