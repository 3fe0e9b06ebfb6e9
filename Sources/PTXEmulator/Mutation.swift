public import PTX

/// A kernel with one of its barriers, waits or fences removed: the emulator must object to it, or the instruction is not
/// needed and goes.
public struct Mutation: Sendable, CustomStringConvertible {
  /// The number of the statement in `kernel.statements`.
  public let statement: Int
  /// The instruction's text.
  public let text: String
  /// The Swift line that made it.
  public let location: SourceLocation
  /// The kernel without it.
  public let program: Program

  /// `File.swift:12: bar.sync 0`.
  public var description: String { "\(location): \(text)" }

  /// One for each instruction of a kernel that is there for its ordering alone.
  public static func all(of kernel: Kernel) -> [Mutation] {
    kernel.statements.indices.filter { kernel.statements[$0].instruction.isOrdering }.map { index in
      Mutation(
        statement: index, text: kernel.statements[index].instruction.description(in: kernel),
        location: kernel.statements[index].location, program: Program(kernel, removing: index))
    }
  }

  /// The mutations that nobody notices.
  ///
  /// - Parameters:
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
