import PTX
import PTXEmulator

// The two doors to shared memory, and copies out of it.
extension HopperFault {
  static let proxies: [HopperFault] = [
    HopperFault("stores are multiplied without a fence between the proxies", .missingFence) { s in
      s.fill(0)
      if !s.isFaulty { s.k.proxyFence() }
      s.k.barrier()
      s.product(s.k.accumulators(32))
    },
    HopperFault("the reader fences between the proxies, and not the writer", .missingFence) { s in
      s.fill(0)
      if !s.isFaulty { s.k.proxyFence() }
      s.k.barrier()
      if s.isFaulty { s.k.proxyFence() }
      s.product(s.k.accumulators(32))
    },
    HopperFault("the fence between the proxies stands before the stores", .missingFence) { s in
      if s.isFaulty { s.k.proxyFence() }
      s.fill(0)
      if !s.isFaulty { s.k.proxyFence() }
      s.k.barrier()
      s.product(s.k.accumulators(32))
    },
    HopperFault("stores are fenced, and no barrier follows", .race, .uninitialized) { s in
      s.fill(0)
      s.k.proxyFence()
      if !s.isFaulty { s.k.barrier() }
      s.product(s.k.accumulators(32))
    },
    HopperFault("one lane of each warp fences the stores of all", .missingFence) { s in
      s.fill(0)
      if s.isFaulty { s.k.if(s.isLeader) { s.k.proxyFence() } } else { s.k.proxyFence() }
      s.k.barrier()
      s.product(s.k.accumulators(32))
    },
    HopperFault("an operand is overwritten while a product reads it", .race) { s in
      s.loadedTile()
      s.k.warpgroupFence()
      s.start(s.k.accumulators(32))
      s.k.commitProducts()
      if s.isFaulty { s.fill(0) }
      s.k.waitForProducts()
      s.k.barrier()
      if !s.isFaulty { s.fill(0) }
    },
    HopperFault("an operand is overwritten when the own product has ended, and others' may not", .race) { s in
      s.loadedTile()
      s.product(s.k.accumulators(32))
      if !s.isFaulty { s.k.barrier() }
      s.fill(0)
    },
    HopperFault("what ordinary loads read is overwritten by a copy without a fence", .missingFence) { s in
      s.makeBarriers([1])
      s.filledTile()
      s.copyOut()
      if !s.isFaulty { s.k.proxyFence() }
      s.k.barrier()
      s.bring { s.load(0, at: s.barrier(0)) }
    },
    HopperFault("what ordinary loads read is overwritten by a copy that nothing orders behind", .race) { s in
      s.makeBarriers([1])
      s.filledTile()
      s.copyOut()
      s.k.proxyFence()
      if !s.isFaulty { s.k.barrier() }
      s.bring { s.load(0, at: s.barrier(0)) }
    },
    HopperFault("what cp.async brought is multiplied without a fence", .missingFence) { s in
      for piece in 0..<2 {
        s.k.copyAsync(
          to: s.tile(0) + s.thread * 32, offset: piece * 16, from: s.targetPlace + s.k.multiplyWide(s.thread, 32),
          offset: piece * 16)
      }
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
      if !s.isFaulty { s.k.proxyFence() }
      s.k.barrier()
      s.product(s.k.accumulators(32))
    },
    HopperFault("an atomic's word is overwritten by a copy that nothing orders behind", .race) { s in
      s.makeBarriers([1])
      s.filledTile()
      _ = s.k.atomic(.add, shared: s.tile(0) + s.thread * 4, s.thread)
      s.k.proxyFence()
      if !s.isFaulty { s.k.barrier() }
      s.bring { s.load(0, at: s.barrier(0)) }
    },
    HopperFault("a tile's number in shared memory is overwritten before all have read it", .race) { s in
      // A mailbox, as schedulers have one.
      for number in 0..<2 {
        s.k.if(s.isFirst) { s.k.store(s.thread + number, shared: s.tile(3)) }
        s.k.barrier()
        s.k.store(s.k.load(U32.self, shared: s.tile(3)), global: s.output + s.k.multiplyWide(s.thread, 4))
        if !s.isFaulty { s.k.barrier() }
      }
    },
  ]

  static let stores: [HopperFault] = [
    HopperFault("stores are sent without a fence between the proxies", .missingFence) { s in
      s.fill(0)
      if !s.isFaulty { s.k.proxyFence() }
      s.k.barrier()
      s.k.if(s.isFirst) {
        s.send()
        s.k.commitBulkCopies()
        s.k.waitForBulkCopies()
      }
    },
    HopperFault("a tile is overwritten before the copy engine has read it", .race) { s in
      s.filledTile()
      s.k.if(s.isFirst) {
        s.send()
        s.k.commitBulkCopies()
        if !s.isFaulty { s.k.waitForBulkCopies(untilRead: true) }
      }
      s.k.barrier()
      s.fill(0)
      if s.isFaulty { s.k.if(s.isFirst) { s.k.waitForBulkCopies() } }
    },
    HopperFault("another thread waits for the copy than the one that started it", .race, .unfinishedCopy) { s in
      s.filledTile()
      s.k.if(s.isFirst) {
        s.send()
        s.k.commitBulkCopies()
      }
      s.k.if(s.isFaulty ? s.thread .== 1 : s.isFirst) { s.k.waitForBulkCopies(untilRead: true) }
      s.k.barrier()
      s.fill(0)
    },
    HopperFault("a copy belongs to no group, so that no wait covers it", .race, .unfinishedCopy) { s in
      s.filledTile()
      s.k.if(s.isFirst) {
        s.send()
        if !s.isFaulty { s.k.commitBulkCopies() }
        s.k.waitForBulkCopies(untilRead: true)
      }
      s.k.barrier()
      s.fill(0)
    },
    HopperFault("the warp ends while the copy engine may still read shared memory", .unfinishedCopy) { s in
      s.filledTile()
      s.k.if(s.isFirst) {
        s.send()
        s.k.commitBulkCopies()
        if !s.isFaulty { s.k.waitForBulkCopies(untilRead: true) }
      }
    },
    HopperFault("what was sent is read by others as soon as its source was", .copyUnderWay) { s in
      s.filledTile()
      s.k.if(s.isFirst) {
        s.send()
        s.k.commitBulkCopies()
        s.k.waitForBulkCopies(untilRead: s.isFaulty)
      }
      s.k.barrier()
      s.k.store(
        s.k.load(U32.self, global: s.targetPlace + s.k.multiplyWide(s.thread, 4)),
        global: s.output + s.k.multiplyWide(s.thread, 4))
    },
    HopperFault("two copies go to the same place, and the first was not waited for", .copyUnderWay) { s in
      s.filledTile()
      s.k.if(s.isFirst) {
        for _ in 0..<2 {
          s.send()
          s.k.commitBulkCopies()
          if !s.isFaulty { s.k.waitForBulkCopies() }
        }
        if s.isFaulty { s.k.waitForBulkCopies() }
      }
    },
    HopperFault(
      "an elected lane starts a copy, and the first lane waits for it", .race, .unfinishedCopy, needsLuck: true
    ) { s in
      s.filledTile()
      s.k.if(s.warp .== 0) {
        let elected = s.k.elect()
        s.k.if(elected) {
          s.send()
          s.k.commitBulkCopies()
        }
        s.k.if(s.isFaulty ? s.isLeader : elected) { s.k.waitForBulkCopies(untilRead: true) }
      }
      s.k.barrier()
      s.fill(0)
    },
    HopperFault("a copy has no bytes", .undefined) { s in
      s.filledTile()
      s.k.if(s.isFirst) {
        s.k.copy(byteCount: s.k.constant(s.isFaulty ? 0 : 64, U32.self), from: s.tile(0), to: s.targetPlace)
        s.k.commitBulkCopies()
        s.k.waitForBulkCopies()
      }
    },
    HopperFault("a box is stored before the tensor's beginning", .undefined) { s in
      s.filledTile()
      s.k.if(s.isFirst) {
        let zero = s.k.constant(0, S32.self)
        s.k.copy(from: s.tile(0), to: s.target, [zero, s.isFaulty ? s.k.constant(-1, S32.self) : zero])
        s.k.commitBulkCopies()
        s.k.waitForBulkCopies()
      }
    },
    HopperFault("a matrix is stored, and read without a barrier of the warp", .race) { s in
      let own = s.tile(0) + s.warp * 512 + s.lane * 16
      s.k.storeMatrix([s.thread, s.thread, s.thread, s.thread], shared: own)
      if !s.isFaulty { s.k.warpBarrier() }
      s.k.store(
        s.k.load(U32.self, shared: s.tile(0) + s.warp * 512 + (s.lane ^ 9) * 16),
        global: s.output + s.k.multiplyWide(s.thread, 4))
    },
  ]
}
