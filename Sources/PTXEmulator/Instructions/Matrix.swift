internal import PTX

extension Machine {
  func execute(_ instruction: Matrix, _ warp: Warp, _ block: Block, _ mask: UInt32) throws(Hazard) {
    try requireWholeWarp(mask, warp, block)
    switch instruction {
    case .load(let isTransposed, let d, let address, let offset):
      try loadMatrix(isTransposed, d, address, offset, warp, block)
    case .store(let isTransposed, let values, let address, let offset):
      try storeMatrix(isTransposed, values, address, offset, warp, block)
    case .multiplyAdd(let inputs, let accumulator, let d, let a, let b, let c):
      counters.matrixInstructions += 1
      multiplyAdd(inputs, accumulator, d, a, b, c, warp.registers)
    }
  }

  private func loadMatrix(
    _ isTransposed: Bool, _ d: RegisterGroup, _ address: RegisterID, _ offset: Int32, _ warp: Warp, _ block: Block
  ) throws(Hazard) {
    let addresses = warp.registers.words(address)
    for matrix in 0..<d.count {
      var rows: [Int] = []
      rows.reserveCapacity(8)
      for row in 0..<8 {
        let lane = matrix * 8 + row
        let place = Int(addresses[lane]) + Int(offset)
        try checkShared(.read, place, 16, 16, warp, block, lane)
        rows.append(place)
      }
      countSharedPasses(8, byteCount: 16) { rows[$0] }
      let words = warp.registers.words(d[matrix])
      for lane in 0..<32 {
        let (g, t) = (lane / 4, lane % 4)
        if isTransposed {
          let low = block.shared.load(fromByteOffset: rows[2 * t] + 2 * g, as: UInt16.self)
          let high = block.shared.load(fromByteOffset: rows[2 * t + 1] + 2 * g, as: UInt16.self)
          words[lane] = UInt32(high) << 16 | UInt32(low)
        } else {
          words[lane] = block.shared.load(fromByteOffset: rows[g] + 4 * t, as: UInt32.self)
        }
      }
    }
  }

  private func storeMatrix(
    _ isTransposed: Bool, _ values: RegisterGroup, _ address: RegisterID, _ offset: Int32, _ warp: Warp, _ block: Block
  ) throws(Hazard) {
    let addresses = warp.registers.words(address)
    for matrix in 0..<values.count {
      var rows: [Int] = []
      for row in 0..<8 {
        let lane = matrix * 8 + row
        let place = Int(addresses[lane]) + Int(offset)
        // The bytes come from four lanes; which of them stores the row is not told apart.
        try checkShared(.write, place, 16, 16, warp, block, lane)
        rows.append(place)
      }
      countSharedPasses(8, byteCount: 16) { rows[$0] }
      let words = warp.registers.words(values[matrix])
      for lane in 0..<32 {
        let (g, t) = (lane / 4, lane % 4)
        if isTransposed {
          block.shared.storeBytes(
            of: UInt16(truncatingIfNeeded: words[lane]), toByteOffset: rows[2 * t] + 2 * g, as: UInt16.self)
          block.shared.storeBytes(of: UInt16(words[lane] >> 16), toByteOffset: rows[2 * t + 1] + 2 * g, as: UInt16.self)
        } else {
          block.shared.storeBytes(of: words[lane], toByteOffset: rows[g] + 4 * t, as: UInt32.self)
        }
      }
    }
  }

  /// One 16 x 8 tile.
  private func multiplyAdd(
    _ inputs: Matrix.Inputs, _ accumulator: Matrix.Accumulator, _ d: RegisterGroup, _ a: RegisterGroup,
    _ b: RegisterGroup, _ c: RegisterGroup, _ r: Registers
  ) {
    let (sums, isBF16) = (sums, inputs == .bf16)
    sums.begin(isBF16 ? .bf16 : .f16, accumulator, columns: 8)
    let place = sums.d
    Half.withF16Values { values in
      @inline(__always) func value(_ bits: UInt32) -> Float {
        isBF16 ? Float(bitPattern: bits << 16) : values[Int(bits)]
      }
      for i in 0..<4 {
        let words = r.words(a[i])
        for lane in 0..<32 {
          let (row, k) = (lane / 4 + i % 2 * 8, lane % 4 * 2 + i / 2 * 8)
          sums.a[row * 16 + k] = value(words[lane] & 0xffff)
          sums.a[row * 16 + k + 1] = value(words[lane] >> 16)
        }
      }
      for i in 0..<2 {
        let words = r.words(b[i])
        for lane in 0..<32 {
          let k = lane % 4 * 2 + i * 8
          sums.b[k * 8 + lane / 4] = value(words[lane] & 0xffff)
          sums.b[k * 8 + 8 + lane / 4] = value(words[lane] >> 16)
        }
      }
      if accumulator == .f16 {
        for i in 0..<2 {
          let words = r.words(c[i])
          for lane in 0..<32 {
            let pair = place + (lane / 4 + i * 8) * 8 + lane % 4 * 2
            pair[0] = values[Int(words[lane] & 0xffff)]
            pair[1] = values[Int(words[lane] >> 16)]
          }
        }
      }
    }
    if accumulator == .f32 {
      for i in 0..<4 {
        let floats = r.floats(c[i])
        for lane in 0..<32 { place[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = floats[lane] }
      }
    }
    sums.compute()
    for i in 0..<d.count {
      if accumulator == .f32 {
        let floats = r.floats(d[i])
        for lane in 0..<32 { floats[lane] = place[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] }
      } else {
        let words = r.words(d[i])
        for lane in 0..<32 {
          let pair = place + (lane / 4 + i * 8) * 8 + lane % 4 * 2
          words[lane] = Half.bits(.f16x2, pair[1]) << 16 | Half.bits(.f16x2, pair[0])
        }
      }
    }
  }
}
