internal import ArgumentParser

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
    subcommands: [
      RunCommand.self, GenerateCommand.self, VerifyCommand.self, BenchCommand.self, TuneCommand.self, InfoCommand.self,
      EmitCommand.self,
    ])
}
