internal import PTX

extension Machine {
  /// The four warps of a group give back registers, or take those that others gave back.
  func setRegisterCount(
    _ isIncrease: Bool, _ count: Int, _ warp: Warp, _ block: Block, _ mask: UInt32
  ) throws(Hazard) {
    try requireWholeWarp(mask, warp, block)
    try checkGroup(warp, block)
    let state = warp.asynchronous!
    let difference = count - state.registerCount
    if isIncrease ? difference < 0 : difference > 0 {
      throw hazard(
        .registerCount,
        "a thread has \(state.registerCount) registers, which setmaxnreg cannot \(isIncrease ? "in" : "de")crease to \(count)",
        warp, block)
    }
    if difference > block.freeRegisters {
      // Until others give back some.
      warp.state = .waitingForRegisters
      warp.next -= 1
      return
    }
    try log(GroupLog.Step(operation: Int32(current)), warp, block)
    block.freeRegisters -= difference
    state.registerCount = count
    for other in block.warps where other.state == .waitingForRegisters { other.state = .ready }
  }
}
