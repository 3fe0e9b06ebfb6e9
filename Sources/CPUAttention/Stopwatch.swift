/// Wall-clock seconds that `body` takes.
func elapsedSeconds(_ body: () -> Void) -> Double { ContinuousClock().measure(body) / .seconds(1) }
