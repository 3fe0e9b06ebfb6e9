public import PTX

/// A kernel with one of its barriers, waits or fences removed, or with an access that orders less than it did: the
/// emulator must object to it, or the instruction or the ordering is not needed and goes.
public struct Mutation: Sendable, CustomStringConvertible {
  /// The number of the statement in `kernel.statements`.
  public let statement: Int
  /// The instruction's text.
  public let text: String
  /// The Swift line that made it.
  public let location: SourceLocation
  /// What stands in its place; nil for nothing.
  public let replacement: String?
  /// The kernel with this change.
  public let program: Program

  /// `File.swift:12: bar.sync 0`, and behind an arrow what it became.
  public var description: String { "\(location): \(text)\(replacement.map { " -> \($0)" } ?? "")" }

  /// One for each instruction of a kernel that is there for its ordering alone, and for each part of the ordering of
  /// others.
  public static func all(of kernel: Kernel) -> [Mutation] {
    kernel.statements.enumerated().flatMap { index, statement in
      let instruction = statement.instruction
      let replacements: [Instruction?] = instruction.isOrdering ? [nil] : instruction.weakened
      return replacements.map { replacement in
        Mutation(
          statement: index, text: instruction.description(in: kernel), location: statement.location,
          replacement: replacement?.description(in: kernel),
          program: Program(kernel, changing: (statement: index, to: replacement)))
      }
    }
  }

  /// The mutations that nobody notices.
  ///
  /// - Parameters:
  ///   - kernel: the kernel.
  ///   - schedules: orders to try; an objection in one of them is enough.
  ///   - run: runs a program on fresh memory and returns whether the result is right.
  public static func survivors(
    of kernel: Kernel, schedules: [Schedule] = [.roundRobin, .random(seed: 1), .random(seed: 2)],
    _ run: (Program, Schedule) throws(Hazard) -> Bool
  ) -> [Mutation] {
    all(of: kernel).filter { mutation in
      schedules.allSatisfy { schedule in
        do { return try run(mutation.program, schedule) } catch { return false }
      }
    }
  }
}
