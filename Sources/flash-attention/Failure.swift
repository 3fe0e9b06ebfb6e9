internal import ArgumentParser
internal import AttentionBenchmarks
internal import FlashAttention
internal import TensorFiles

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

/// Exit codes beside ArgumentParser's 64 for a wrong command line.
extension ExitCode {
  /// A comparison or a verification failed.
  static let comparisonFailed = ExitCode(1)
  /// Something is wrong in a file or with the machine.
  static let fileOrMachine = ExitCode(2)
}

/// Runs `body`; an error about files or about what they hold becomes one sentence on standard error and exit code 2.
func reportingFileErrors<Result>(_ body: () throws -> Result) throws -> Result {
  do {
    return try body()
  } catch let error as TensorFileError {
    printError("Error: \(error)")
  } catch let error as AttentionError {
    printError("Error: \(error)")
  }
  throw ExitCode.fileOrMachine
}

/// Runs `body`; an error about a problem that the options describe is an error of the command line (64), one about the
/// machine is not.
func reportingOptionErrors<Result>(_ body: () throws -> Result) throws -> Result {
  do {
    return try body()
  } catch let error as AttentionError {
    if case .deviceUnavailable = error {
      printError("Error: \(error)")
      throw ExitCode.fileOrMachine
    }
    throw ValidationError("\(error)")
  }
}

/// Refuses what cannot fit the machine before anything is allocated: all four tensors of a problem at once.
func requireMemory(for problem: AttentionProblem) throws {
  if problem.bytes > Double(Machine.memoryByteCount) {
    printError(
      "Error: The tensors need \(fixed(problem.bytes / 1e9, 1)) GB together; this machine has "
        + "\(fixed(Double(Machine.memoryByteCount) / 1e9, 1)). Choose a smaller shape.")
    throw ExitCode.fileOrMachine
  }
}

/// A line on standard error.
func printError(_ text: String) {
  let line = Array((text + "\n").utf8)
  _ = write(STDERR_FILENO, line, line.count)
}
