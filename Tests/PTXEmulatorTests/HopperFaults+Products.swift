import PTX
import PTXEmulator

// Products of four warps: registers, operands, groups; register counts.
extension HopperFault {
  static let products: [HopperFault] = [
    HopperFault("there is no fence before the first product", .missingFence) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      if !s.isFaulty { s.k.warpgroupFence() }
      s.start(sums)
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(sums)
    },
    HopperFault("sums are cleared behind the fence", .missingFence) { s in
      s.loadedTile()
      let sums = (0..<32).map { _ in s.k.variable(s.k.constant(0)) }
      s.k.warpgroupFence()
      if s.isFaulty { s.k.set(sums[5], to: s.k.constant(1)) }
      s.start(sums, sum: .always)
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(sums)
    },
    HopperFault("sums are scaled between two products without a fence", .missingFence) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      s.product(sums)
      s.k.set(sums[0], to: sums[0] * 2)
      if !s.isFaulty { s.k.warpgroupFence() }
      s.start(sums, sum: .always)
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(sums)
    },
    HopperFault("sums are read before their product is waited for", .registersUnderWay) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      s.k.warpgroupFence()
      s.start(sums)
      s.k.commitProducts()
      if s.isFaulty { s.store(sums) }
      s.k.waitForProducts()
      if !s.isFaulty { s.store(sums) }
    },
    HopperFault("the wait covers the other group of products", .registersUnderWay) { s in
      s.loadedTile()
      let (first, second) = (s.k.accumulators(32), s.k.accumulators(32))
      s.k.warpgroupFence()
      s.start(s.isFaulty ? second : first)
      s.k.commitProducts()
      s.start(s.isFaulty ? first : second)
      s.k.commitProducts()
      s.k.waitForProducts(pending: 1)
      s.store(first)
      s.k.waitForProducts()
    },
    HopperFault("a product belongs to no group, so that no wait covers it", .registersUnderWay) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      s.k.warpgroupFence()
      s.start(sums)
      if !s.isFaulty { s.k.commitProducts() }
      s.k.waitForProducts()
      s.store(sums)
      if s.isFaulty {
        s.k.commitProducts()
        s.k.waitForProducts()
      }
    },
    HopperFault("A's registers are written while a product reads them", .registersUnderWay) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      let a = (0..<4).map { s.k.variable(s.thread + $0) }
      s.k.warpgroupFence()
      s.k.startProduct(.bf16, a: a, b: s.operand(0), into: sums, sum: .never)
      s.k.commitProducts()
      if s.isFaulty { s.k.set(a[2], to: s.thread) }
      s.k.waitForProducts()
      if !s.isFaulty { s.k.set(a[2], to: s.thread) }
      s.store(sums)
    },
    HopperFault("A's registers are written behind the fence", .missingFence) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      let a = (0..<4).map { s.k.variable(s.thread + $0) }
      if !s.isFaulty { s.k.set(a[1], to: s.thread) }
      s.k.warpgroupFence()
      if s.isFaulty { s.k.set(a[1], to: s.thread) }
      s.k.startProduct(.bf16, a: a, b: s.operand(0), into: sums, sum: .never)
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(sums)
    },
    HopperFault("sums of a product under way are A of the next", .registersUnderWay) { s in
      s.loadedTile()
      let (sums, more) = (s.k.accumulators(32), s.k.accumulators(32))
      s.k.warpgroupFence()
      s.start(sums)
      s.k.commitProducts()
      if !s.isFaulty { s.k.waitForProducts() }
      let a = stride(from: 0, to: 8, by: 2).map {
        s.k.pack(sums[$0], sums[$0 + 1], as: BF16x2.self).reinterpreted(as: U32.self)
      }
      s.k.warpgroupFence()
      s.k.startProduct(.bf16, a: a, b: s.operand(0, isTransposed: true), into: more, sum: .never)
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(more)
    },
    HopperFault("products of different sizes add to the same registers", .registersUnderWay) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      s.k.warpgroupFence()
      s.start(sums)
      if !s.isFaulty {
        s.k.commitProducts()
        s.k.waitForProducts()
        s.k.warpgroupFence()
      }
      s.k.startProduct(.bf16, a: s.operand(0), b: s.operand(0), into: Array(sums[..<16]), sum: .always)
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(sums)
    },
    HopperFault("sums are added to by a product of another size without a fence", .missingFence) { s in
      s.loadedTile()
      let sums = s.k.accumulators(32)
      s.product(sums)
      if !s.isFaulty { s.k.warpgroupFence() }
      s.k.startProduct(.bf16, a: s.operand(0), b: s.operand(0), into: Array(sums[..<16]))
      s.k.commitProducts()
      s.k.waitForProducts()
      s.store(sums)
    },
    HopperFault("the first lane waits for a tile that the whole warp multiplies", .race) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        s.load(0, at: s.barrier(0))
      }
      s.k.if(s.isLeader) { s.ring(0, as: .consumer).wait() }
      if !s.isFaulty { s.k.warpBarrier() }
      s.product(s.k.accumulators(32))
    },
    HopperFault("the warp ends with a product under way", .unfinishedCopy) { s in
      s.loadedTile()
      s.k.warpgroupFence()
      s.start(s.k.accumulators(32))
      s.k.commitProducts()
      if !s.isFaulty { s.k.waitForProducts() }
    },
    HopperFault("three of four warps issue a product", .divergence) { s in
      s.loadedTile()
      s.k.if(s.warp .< (s.isFaulty ? 3 : 4)) { s.product(s.k.accumulators(32)) }
    },
    HopperFault("half a warp issues a product", .divergence) { s in
      s.loadedTile()
      if s.isFaulty {
        s.k.if(s.lane .< 16) { s.product(s.k.accumulators(32)) }
      } else {
        s.product(s.k.accumulators(32))
      }
    },
    HopperFault("the warps of a group give different descriptors", .divergence) { s in
      s.loadedTile()
      let step = s.isFaulty ? (s.warp % 2) * 32 : s.k.constant(0, U32.self)
      let own = s.k.descriptor(Setting.layout, at: s.shared + step)
      s.product(with: own)
    },
    HopperFault("the lanes of a warp give different descriptors", .undefined) { s in
      s.loadedTile()
      let own = s.k.descriptor(
        Setting.layout, at: s.shared + (s.isFaulty ? (s.lane % 2) * 32 : s.k.constant(0, U32.self)))
      s.product(with: own)
    },
    HopperFault("an operand begins in the middle of the swizzle's pattern", .misaligned) { s in
      s.loadedTile()
      let own = s.k.descriptor(Setting.layout, at: s.shared + (s.isFaulty ? 128 : 0))
      s.product(with: own)
    },
    HopperFault("an operand was never written", .uninitialized) { s in
      s.loadedTile()
      s.product(s.k.accumulators(32), s.isFaulty ? 1 : 0)
    },
  ]

  static let roles: [HopperFault] = [
    HopperFault("more registers are asked for than others give back", .deadlock, threads: 384) { s in
      // 168 a thread when the kernel begins: 504 for a thread of each group.
      s.k.if(s.warp .< 4) {
        s.k.setRegisterCount(s.isFaulty ? 40 : 24, isIncrease: false)
      } else: {
        s.k.setRegisterCount(240, isIncrease: true)
      }
    },
    HopperFault("three of four warps give back registers", .divergence) { s in
      s.k.if(s.isFaulty ? s.warp .< 3 : s.warp .< 4) { s.k.setRegisterCount(40, isIncrease: false) }
    },
    HopperFault("a decrease of registers is an increase", .registerCount) { s in
      s.k.setRegisterCount(40, isIncrease: false)
      s.k.setRegisterCount(s.isFaulty ? 48 : 32, isIncrease: false)
    },
  ]
}
