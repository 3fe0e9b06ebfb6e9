#if canImport(Glibc)
  @preconcurrency internal import Glibc
#elseif canImport(Musl)
  @preconcurrency internal import Musl
#endif

/// One line on standard error that says how far long work is; silent where standard error is not a terminal, and for
/// the first half second.
struct Progress: Sendable {
  private let isShown = isatty(STDERR_FILENO) == 1
  private let start = ContinuousClock.now
  private var last = ContinuousClock.now

  /// - Parameter isSure: at once, because what follows may take long and cannot report by itself.
  mutating func show(_ text: @autoclosure () -> String, isSure: Bool = false) {
    let now = ContinuousClock.now
    guard isShown, isSure || now - start > .milliseconds(500) && now - last > .milliseconds(100) else { return }
    last = now
    put("\r\u{1b}[K" + text())
  }

  /// Removes the line.
  func clear() {
    if isShown { put("\r\u{1b}[K") }
  }

  private func put(_ text: String) {
    let bytes = Array(text.utf8)
    _ = write(STDERR_FILENO, bytes, bytes.count)
  }
}

/// A line to standard output that is there whatever becomes of the rest.
func printAtOnce(_ text: String) {
  print(text)
  fflush(stdout)
}
