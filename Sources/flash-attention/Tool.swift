internal import ArgumentParser
internal import FlashAttention

#if canImport(Glibc)
  @preconcurrency internal import Glibc
#elseif canImport(Musl)
  @preconcurrency internal import Musl
#endif

@main
struct Tool: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "flash-attention",
    abstract: "Exact attention, fast, from the command line.",
    discussion: """
      Start with the example that comes with the project:

        flash-attention run Examples/minilm-layer3.safetensors --compare expected

      Results go to standard output, progress and errors to standard error. Exit codes: 0, all well; 1, a comparison \
      or verification failed; 2, something is wrong with a file or the machine; 64, with the command line.
      """,
    version: "\(Version.current)",
    subcommands: [
      RunCommand.self, GenerateCommand.self, VerifyCommand.self, BenchCommand.self, TuneCommand.self, InfoCommand.self,
      EmitCommand.self,
    ])

  static func main() {
    // Whatever ends the command: what could not be written did not go well.
    atexit {
      let isFlushed = fflush(stdout) == 0
      // The reason of an earlier failure is not known any more.
      let reason = isFlushed ? "" : ": \(String(cString: strerror(errno)))"
      if !isFlushed || ferror(stdout) != 0 {
        printError("Error: Standard output cannot be written\(reason).")
        _exit(ExitCode.fileOrMachine.rawValue)
      }
    }
    do {
      var command = try parseAsRoot()
      do {
        try command.run()
      } catch let error as ValidationError {
        // What only running shows; ArgumentParser would say how to call the tool, and not the command.
        let usage = usageString(for: type(of: command))
        let name = usage.split(separator: " ").prefix { !"<[".contains($0.first!) }.joined(separator: " ")
        printError("Error: \(error.message)\nUsage: \(usage)\n  See '\(name) --help' for more information.")
        throw ExitCode.validationFailure
      }
    } catch { exit(withError: error) }
  }
}
