/// What ptxas made of a kernel, instruction by instruction, as `nvdisasm` writes it (SASS): for what the PTX does not show.
/// Whether products wait for one another, what lies between two waits, and whether the registers of a product under way
/// are written.
package struct MachineCode: Sendable {
  /// One instruction.
  package struct Instruction: Sendable {
    /// With its modifiers: `HGMMA.64x256x16.F32.BF16`.
    package let opcode: String
    /// As they are written.
    package let operands: [String]
    /// The guard, the opcode and the operands.
    package let text: String

    /// By four warps (`wgmma`).
    package var isProduct: Bool { opcode.hasPrefix("HGMMA") || opcode.hasPrefix("QGMMA") }
    /// Whether it ends a group of products.
    package var endsGroup: Bool { isProduct && operands.contains("gsb0") }
    /// Of a wait for groups of products: how many may be under way behind it.
    package var pendingGroups: Int? {
      guard opcode.hasPrefix("WARPGROUP.DEPBAR"), let count = operands.last else { return nil }
      return Int(count.dropFirst(2), radix: 16)
    }

    /// Registers from which a product takes A; none where it lies in shared memory.
    var registersOfA: Range<Int>? {
      guard isProduct, operands.count > 1, let first = Self.register(operands[1]) else { return nil }
      return first..<first + 4
    }

    /// Registers that are written; products aside, whose sums are another matter.
    var written: Range<Int>? {
      let silent = [
        "ST", "RED", "BRA", "BAR", "EXIT", "SYNCS.ARRIVE", "UTMA", "WARPGROUP", "DEPBAR", "MEMBAR", "FENCE",
      ]
      if isProduct || silent.contains(where: opcode.hasPrefix) { return nil }
      // Some write a predicate first: SHFL PT, R5, ...
      let place = operands.first?.hasPrefix("P") == true ? 1 : 0
      guard operands.count > place, let first = Self.register(operands[place]) else { return nil }
      let isWide = opcode.includes(".64") || opcode.includes(".WIDE")
      let count = opcode.includes(".128") || opcode.hasSuffix(".4") ? 4 : isWide || opcode.hasSuffix(".2") ? 2 : 1
      return first..<first + count
    }

    private static func register(_ operand: String) -> Int? {
      guard operand.hasPrefix("R") else { return nil }
      return Int(operand.dropFirst().prefix { $0.isNumber })
    }
  }

  /// In the order of their addresses.
  package let instructions: [Instruction]
  /// The instruction behind each label.
  private let labels: [String: Int]

  /// Reads what `nvdisasm -c` prints.
  package init(_ listing: String) {
    var (instructions, labels) = ([Instruction](), [String: Int]())
    for line in listing.split(separator: "\n") {
      if line.hasPrefix(Self.labelPrefix), line.hasSuffix(":") {
        labels[String(line.dropLast())] = instructions.count
      } else if let instruction = Self.instruction(in: line) {
        instructions.append(instruction)
      }
    }
    (self.instructions, self.labels) = (instructions, labels)
  }

  private static let labelPrefix = ".L_x_"

  /// That of a line such as `/*0a10*/  @!P0 IADD3 R4, R5, 0x1, RZ ;`; nil where it is none.
  private static func instruction(in line: Substring) -> Instruction? {
    let parts = line.drop(while: \.isWhitespace)
    guard parts.hasPrefix("/*"), let end = parts.dropFirst(2).firstIndex(of: "*"), let last = parts.firstIndex(of: ";"),
      end < last, parts[end...].hasPrefix("*/"), Int(parts[..<end].dropFirst(2), radix: 16) != nil
    else { return nil }
    var words = parts[end..<last].dropFirst(2).split(separator: " ")
    let text = words.joined(separator: " ")
    if words.first?.hasPrefix("@") == true { words.removeFirst() }
    guard let opcode = words.first else { return nil }
    return Instruction(
      opcode: String(opcode),
      operands: words.dropFirst().joined(separator: " ").split(separator: ",").map {
        String($0.drop(while: \.isWhitespace))
      }, text: text)
  }

  /// How many instructions begin like this.
  package func count(_ opcode: String) -> Int { instructions.count { $0.opcode.hasPrefix(opcode) } }

  /// Products by four warps.
  package var products: Int { instructions.count(where: \.isProduct) }

  /// Whether ptxas waits for each product before the next: it then writes as many waits as there are products.
  package var isSerialized: Bool { products > 1 && count("WARPGROUP.DEPBAR") >= products }

  /// How many instructions that begin like `opcode` lie between one wait for products and the next, in the order of
  /// addresses; the first number is of those before any wait.
  package func counts(of opcode: String) -> [Int] {
    var counts = [0]
    for instruction in instructions {
      if instruction.pendingGroups != nil { counts.append(0) }
      if instruction.opcode.hasPrefix(opcode) { counts[counts.count - 1] += 1 }
    }
    return counts
  }

  /// Instructions that write a register from which a product under way takes A, on the way straight on and once around each
  /// loop: ptxas before 13.3 may write the next product's too early.
  package var writesOfOperandsUnderWay: [String] {
    var found: [String] = []
    func walk(from start: Int, to end: Int, _ groups: [[Range<Int>]], _ open: [Range<Int>], isAround: Bool) {
      var (groups, open) = (groups, open)
      for index in start..<end {
        let instruction = instructions[index]
        if let pending = instruction.pendingGroups {
          groups.removeFirst(max(0, groups.count - pending))
        } else if instruction.isProduct {
          if let registers = instruction.registersOfA { open.append(registers) }
          if instruction.endsGroup {
            groups.append(open)
            open = []
          }
        } else if let written = instruction.written,
          (groups.joined() + open).contains(where: { $0.overlaps(written) }), !found.contains(instruction.text)
        {
          found.append(instruction.text)
        }
        if !isAround, instruction.opcode.hasPrefix("BRA"), let target = target(of: instruction), target <= index,
          !groups.isEmpty || !open.isEmpty
        {
          walk(from: target, to: index, groups, open, isAround: true)
        }
      }
    }
    walk(from: 0, to: instructions.count, [], [], isAround: false)
    return found
  }

  private func target(of branch: Instruction) -> Int? {
    // As "`(.L_x_1)".
    guard let label = branch.operands.last?.drop(while: { $0 != "." }) else { return nil }
    return labels[String(label.prefix { $0 != ")" })]
  }
}
