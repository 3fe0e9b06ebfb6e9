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
      let isWide = opcode.contains(".64") || opcode.contains(".WIDE")
      let count = opcode.contains(".128") || opcode.hasSuffix(".4") ? 4 : isWide || opcode.hasSuffix(".2") ? 2 : 1
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
      if let label = line.wholeMatch(of: /(\.L_x_[0-9]+):/) {
        labels[String(label.1)] = instructions.count
      } else if let match = line.firstMatch(of: /\/\*[0-9a-f]{4,}\*\/\s+((?:@!?U?P[0-9T]+\s+)?(\S+)\s*([^;]*?))\s*;/) {
        instructions.append(
          Instruction(
            opcode: String(match.2),
            operands: match.3.split(separator: ",").map { $0.trimmingPrefix(while: \.isWhitespace) }.map(String.init),
            text: String(match.1)))
      }
    }
    (self.instructions, self.labels) = (instructions, labels)
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
    guard let name = branch.operands.last?.firstMatch(of: /\.L_x_[0-9]+/) else { return nil }
    return labels[String(name.0)]
  }
}
