internal import PTX

extension Machine {
  func execute(_ instruction: WarpExchange, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    // The member mask names all lanes, so all must be here.
    try requireWholeWarp(mask, warp, block)
    let r = warp.registers
    switch instruction {
    case .shuffle(let mode, let d, let a, let lane, let width):
      let (d, a, lanes) = (r.words(d), r.words(a), r.words(lane))
      let before = (0..<32).map { a[$0] }
      let width = Int(width)
      for lane in 0..<32 {
        let start = lane / width * width
        let asked = Int(lanes[lane] & 31)
        let source =
          switch mode {
          case .up: lane - asked
          case .down: lane + asked
          case .butterfly: lane ^ asked
          case .index: start + asked % width
          }
        d[lane] = before[source >= start && source < start + width ? source : lane]
      }
    case .vote(let mode, let d, let p):
      let p = r.predicate(p)
      let holds = mode == .all ? p == .max : p != 0
      r.setPredicate(d, holds ? .max : 0, mask: mask)
    case .elect(let d): r.setPredicate(d, 1 << UInt32(electedLane), mask: mask)
    case .ballot(let d, let p):
      let p = r.predicate(p)
      let d = r.words(d)
      for lane in 0..<32 { d[lane] = p }
    }
  }
}
