extension Kernel {
  /// The kernel as PTX, for the driver or for `ptxas`.
  ///
  /// - Parameters:
  ///   - target: the GPU to write for; nil for the oldest that has all instructions, whose PTX runs on every newer one.
  ///   - locations: ends each line with the Swift line that made it.
  /// - Throws: `KernelError` where the target lacks an instruction.
  public func text(target: Target? = nil, locations: Bool = false) throws(KernelError) -> String {
    let requirement = self.requirement
    let target = target ?? requirement.target
    if !target.has(requirement.target) {
      guard let culprit = statements.first(where: { !target.has($0.instruction.requirement.target) }) else {
        throw KernelError(
          "A cluster needs \(requirement.target); \(target) was asked for.", at: SourceLocation(file: name, line: 0))
      }
      let names = self.names()
      throw KernelError(
        "`\(culprit.instruction.text(names))` needs \(culprit.instruction.requirement.target); \(target) was asked for.",
        at: culprit.location)
    }
    var writer = TextWriter(names: names(), locations: locations)
    writer.line(".version \(max(requirement.version, target.version))")
    writer.line(".target \(target)")
    writer.line(".address_size 64")
    writer.line("")
    if let alignment = dynamicSharedAlignment {
      writer.line(".extern .shared .align \(alignment) .b8 \(Self.sharedName(-1))[];")
      writer.line("")
    }
    writer.line(".visible .entry \(name)(")
    for (index, parameter) in parameters.enumerated() {
      let comma = index + 1 < parameters.count ? "," : ""
      let place = Self.parameterName(index)
      let declaration =
        parameter.role == .tensorMap
        ? ".align 64 .b8 \(place)[\(TensorMap.byteCount)]" : "\(parameter.kind.suffix) \(place)"
      writer.line("  .param \(declaration)\(comma)  // \(parameter.name)")
    }
    writer.line(")")
    writer.line(".maxntid \(threadsPerBlock), 1, 1")
    if let clusterSize { writer.line(".reqnctapercluster \(clusterSize), 1, 1") }
    if let blocks = blocksPerMultiprocessor { writer.line(".minnctapersm \(blocks)") }
    writer.line("{")
    for (index, buffer) in sharedBuffers.enumerated() {
      writer.line(
        "  .shared .align \(buffer.alignment) .b8 \(Self.sharedName(index))[\(buffer.byteCount)];  // \(buffer.name)")
    }
    writer.declare(registers)
    writer.line("")
    writer.write(body, indentation: 1)
    writer.line("  ret;")
    writer.line("}")
    return writer.text
  }

  /// - Parameter constants: of registers behind the kernel's own.
  func names(constants: [UInt64] = []) -> TextNames {
    TextNames(registers: registers.map { "%\($0.name)" } + constants.map { "\($0)" }, lists: registerLists)
  }
}

private struct TextWriter {
  let names: TextNames
  let locations: Bool
  var text = ""
  private var labels = 0

  init(names: TextNames, locations: Bool) {
    self.names = names
    self.locations = locations
  }

  mutating func line(_ line: String) { text += line + "\n" }

  mutating func declare(_ registers: [Kernel.Register]) {
    for storage in RegisterKind.Storage.allCases {
      let names = registers.filter { $0.kind.storage == storage }.map { "%\($0.name)" }
      // Ten to a line, so that the lines stay short.
      for start in stride(from: 0, to: names.count, by: 10) {
        let some = names[start..<min(start + 10, names.count)].joined(separator: ", ")
        line("  .reg \(storage.declaration) \(some);")
      }
    }
  }

  mutating func write(_ nodes: [Kernel.Node], indentation: Int) {
    let space = String(repeating: "  ", count: indentation)
    for node in nodes {
      switch node {
      case .comment(let comment):
        line("\(space)// \(comment)")
      case .statement(let statement):
        let condition = statement.guardedBy.map { "@\($0.isNegated ? "!" : "")\(names($0.predicate)) " } ?? ""
        line("\(space)\(condition)\(statement.instruction.text(names));\(note(statement.location))")
      case .loop(let body, let predicate, let location):
        let label = nextLabel("LOOP")
        line("\(label):\(note(location))")
        // Left alone, ptxas unrolls the loop again and takes seconds for it.
        line("\(space).pragma \"nounroll\";")
        write(body, indentation: indentation + 1)
        line("\(space)@\(names(predicate)) bra \(label);")
      case .branch(let condition, let then, let otherwise, let location):
        let end = nextLabel("END")
        let target = otherwise.isEmpty ? end : nextLabel("ELSE")
        let unless = condition.isNegated ? "" : "!"
        line("\(space)@\(unless)\(names(condition.predicate)) bra \(target);\(note(location))")
        write(then, indentation: indentation + 1)
        if !otherwise.isEmpty {
          line("\(space)bra \(end);")
          line("\(target):")
          write(otherwise, indentation: indentation + 1)
        }
        line("\(end):")
      }
    }
  }

  private mutating func nextLabel(_ word: String) -> String {
    labels += 1
    return "\(word)_\(labels)"
  }

  private func note(_ location: SourceLocation) -> String { locations ? "  // \(location)" : "" }
}
