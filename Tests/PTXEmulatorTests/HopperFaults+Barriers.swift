import PTX
import PTXEmulator

// Rings of stages, transaction barriers, copies to shared memory, clusters.
extension HopperFault {
  static let pipelines: [HopperFault] = [
    HopperFault("the producer does not wait until a stage is free", .race, .copyUnderWay, .transactionBarrier) { s in
      s.pipeline(producerWaits: !s.isFaulty)
    },
    HopperFault("the consumer does not wait for its tile", .copyUnderWay, .uninitialized, .race) { s in
      s.pipeline(consumerWaits: !s.isFaulty)
    },
    HopperFault("the consumer begins with the producer's parity", .copyUnderWay, .uninitialized, .race) { s in
      s.pipeline(consumerSide: s.isFaulty ? .producer : .consumer)
    },
    HopperFault("the producer begins with the consumer's parity", .deadlock) { s in
      s.pipeline(producerSide: s.isFaulty ? .consumer : .producer)
    },
    HopperFault("less bytes are expected than come", .deadlock, .copyUnderWay) { s in
      s.pipeline(expecting: Setting.tileBytes / (s.isFaulty ? 2 : 1))
    },
    HopperFault("more bytes are expected than come", .deadlock) { s in
      s.pipeline(expecting: Setting.tileBytes + (s.isFaulty ? 128 : 0))
    },
    HopperFault("a stage is given back before the product that reads it is waited for", .race) { s in
      s.pipeline(freesEarly: s.isFaulty)
    },
    HopperFault("a stage is never given back", .deadlock) { s in s.pipeline(frees: !s.isFaulty) },
    HopperFault("all lanes give a stage back, where one of each warp is counted", .transactionBarrier) { s in
      s.pipeline(freesByAll: s.isFaulty)
    },
    HopperFault(
      "one warp is counted of the four that give a stage back", .race, .transactionBarrier, .copyUnderWay, .deadlock
    ) {
      s in
      s.pipeline(arrivals: s.isFaulty ? 1 : 4)
    },
    HopperFault("five warps are counted of the four that give a stage back", .deadlock) { s in
      s.pipeline(arrivals: s.isFaulty ? 5 : 4)
    },
    HopperFault("the consumer's ring stays where it is", .deadlock, .copyUnderWay, .race, .uninitialized) { s in
      s.pipeline(advances: !s.isFaulty)
    },
    HopperFault("two groups use a stage, and one gives it back", .race) { s in
      // Both groups multiply; the eighth warp's leader brings the next tile when those who are counted are done.
      s.makeBarriers([1, s.isFaulty ? 4 : 8])
      let (full, empty) = (s.ring(0, as: .consumer), s.ring(1, as: .producer))
      let sums = s.k.accumulators(32)
      for step in 0..<2 {
        s.k.if(s.thread .== 224) {
          empty.wait()
          full.arrive(expecting: Setting.tileBytes)
          s.load(0, at: s.barrier(0), row: step * 64)
        }
        full.wait()
        s.product(sums)
        s.k.if(s.isLeader & (s.isFaulty ? s.isConsumer : s.warp .< 8)) { s.k.arrive(transactionBarrier: s.barrier(1)) }
        full.advance()
        empty.advance()
      }
      s.store(sums)
    },
  ]

  static let barriers: [HopperFault] = [
    HopperFault("a transaction barrier is made without a fence for the copy engine", .missingFence) { s in
      s.makeBarriers([1], fences: !s.isFaulty)
      s.bring { s.load(0, at: s.barrier(0)) }
    },
    HopperFault("a transaction barrier is used before others know that it was made", .race, .transactionBarrier) { s in
      s.makeBarriers([256], waits: !s.isFaulty)
      s.k.arrive(transactionBarrier: s.barrier(0))
      s.ring(0, as: .consumer).wait()
    },
    HopperFault("a transaction barrier is made twice", .transactionBarrier) { s in
      s.makeBarriers([1])
      if s.isFaulty { s.makeBarriers([1]) }
    },
    HopperFault("all lanes of a warp make the same transaction barrier", .transactionBarrier) { s in
      let place = s.isFaulty ? s.barrier(0) : s.barrier(0) + s.lane * 8
      s.k.if(s.warp .== 0) { s.k.initialize(transactionBarrier: place, arrivals: 1) }
    },
    HopperFault("nobody made the transaction barrier", .transactionBarrier) { s in
      s.makeBarriers([256])
      s.k.arrive(transactionBarrier: s.isFaulty ? s.barrier(1) : s.barrier(0))
    },
    HopperFault("an ordinary store hits a transaction barrier", .transactionBarrier) { s in
      s.makeBarriers([256])
      s.k.if(s.isFirst) { s.k.store(s.thread, shared: s.barrier(s.isFaulty ? 0 : 1), offset: 4) }
    },
    HopperFault("more threads arrive than are counted", .transactionBarrier) { s in
      s.makeBarriers([s.isFaulty ? 255 : 256])
      s.k.arrive(transactionBarrier: s.barrier(0))
    },
    HopperFault("a leader goes on while lanes of its warp may still wait, and ends the next phase", .transactionBarrier)
    { s in
      // Ping-pong of two warps' leaders; the other lanes wait too.
      s.makeBarriers([1, 1])
      let (ping, pong) = (s.ring(0, as: .consumer), s.ring(1, as: .consumer))
      s.k.if(s.warp .== 0) {
        for _ in 0..<3 {
          s.k.if(s.isLeader) { ping.arrive() }
          pong.wait()
          s.k.warpBarrier()
          pong.advance()
        }
      } else: {
        s.k.if(s.warp .== 1) {
          for _ in 0..<3 {
            ping.wait()
            if !s.isFaulty { s.k.warpBarrier() }
            s.k.if(s.isLeader) { pong.arrive() }
            ping.advance()
          }
        }
      }
    },
    HopperFault("bytes are expected, and nobody is counted for them", .deadlock) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) {
        if s.isFaulty {
          s.k.expect(transactionBarrier: s.barrier(0), byteCount: Setting.tileBytes)
        } else {
          s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        }
        s.load(0, at: s.barrier(0))
      }
      s.ring(0, as: .consumer).wait()
    },
    HopperFault("bytes are expected that nobody brings", .transactionBarrier) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) { s.k.arrive(transactionBarrier: s.barrier(0), expecting: s.isFaulty ? 64 : 0) }
    },
    HopperFault("the wait is for another barrier than the copy's", .copyUnderWay, .race) { s in
      s.makeBarriers([1, 1])
      s.k.if(s.isFirst) {
        for number in 0..<2 {
          s.k.arrive(transactionBarrier: s.barrier(number), expecting: Setting.tileBytes)
          s.load(number, at: s.barrier(number))
        }
      }
      s.ring(s.isFaulty ? 1 : 0, as: .consumer).wait()
      s.copyOut()
      s.ring(s.isFaulty ? 0 : 1, as: .consumer).wait()
    },
    HopperFault("only the lane that waited knows of the tile, and others read it", .race) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        s.load(0, at: s.barrier(0))
      }
      s.k.if(s.isLeader) { s.ring(0, as: .consumer).wait() }
      if !s.isFaulty { s.k.warpBarrier() }
      s.copyOut()
    },
    HopperFault("who copied by cp.async arrives without waiting for the copies", .copyUnderWay) { s in
      s.makeBarriers([256])
      s.k.copyAsync(to: s.tile(0) + s.thread * 16, from: s.targetPlace + s.k.multiplyWide(s.thread, 16))
      if s.isFaulty {
        s.k.arrive(transactionBarrier: s.barrier(0))
      } else {
        s.k.arriveAfterCopies(transactionBarrier: s.barrier(0))
      }
      s.ring(0, as: .consumer).wait()
      s.k.store(
        s.k.load(U32.self, shared: s.tile(0) + (s.thread ^ 32) * 16), global: s.output + s.k.multiplyWide(s.thread, 4))
      if s.isFaulty {
        s.k.commitCopies()
        s.k.waitForCopies(pending: 0)
      }
    },
    HopperFault("what is stored behind an arrival after copies is read by others", .race) { s in
      s.makeBarriers([256])
      let own = s.tile(1) + s.thread * 4
      if !s.isFaulty { s.k.store(s.thread, shared: own) }
      s.k.copyAsync(to: s.tile(0) + s.thread * 16, from: s.targetPlace + s.k.multiplyWide(s.thread, 16))
      s.k.arriveAfterCopies(transactionBarrier: s.barrier(0))
      if s.isFaulty { s.k.store(s.thread, shared: own) }
      s.ring(0, as: .consumer).wait()
      s.copyOut(s.tile(1) + (s.thread ^ 32) * 4)
    },
    HopperFault("lanes of a warp read each other's words without waiting", .race) { s in
      s.makeBarriers([256])
      s.k.store(s.thread, shared: s.tile(0) + s.thread * 4)
      s.k.arrive(transactionBarrier: s.barrier(0))
      if !s.isFaulty { s.ring(0, as: .consumer).wait() }
      s.copyOut(s.tile(0) + (s.thread ^ 1) * 4)
    },
    HopperFault("the block ends while a copy is under way", .unfinishedCopy, needsLuck: true) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) {
        s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes)
        s.load(0, at: s.barrier(0))
        if !s.isFaulty { s.ring(0, as: .consumer).wait() }
      }
    },
    HopperFault("all lanes of a warp bring the same bytes", .copyUnderWay, .race, .transactionBarrier) { s in
      s.makeBarriers([1])
      s.k.if(s.isFirst) { s.k.arrive(transactionBarrier: s.barrier(0), expecting: 32 * 64) }
      s.k.warpBarrier()
      let place = s.isFaulty ? s.tile(0) : s.tile(0) + s.lane * 64
      s.k.if(s.warp .== 0) {
        s.k.copy(
          byteCount: s.k.constant(64, U32.self), from: s.targetPlace + s.k.multiplyWide(s.lane, 64), to: place,
          barrier: s.barrier(0))
      }
      s.ring(0, as: .consumer).wait()
    },
    HopperFault("a tile begins in the middle of the swizzle's pattern", .misaligned) { s in
      s.makeBarriers([1])
      s.bring {
        s.load(0, at: s.barrier(0), to: s.shared + (s.isFaulty ? 512 : 1024))
      }
    },
    HopperFault("a box is given less coordinates than the tensor has dimensions", .undefined) { s in
      s.makeBarriers([1])
      s.bring {
        let zero = s.k.constant(0, S32.self)
        s.k.copy(s.map, s.isFaulty ? [zero] : [zero, zero], to: s.tile(0), barrier: s.barrier(0))
      }
    },
    HopperFault("a box begins beside a multiple of 16 bytes", .misaligned) { s in
      s.makeBarriers([1])
      s.bring {
        let (zero, first) = (s.k.constant(0, S32.self), s.k.constant(s.isFaulty ? 3 : -8, S32.self))
        s.k.copy(s.map, [first, zero], to: s.tile(0), barrier: s.barrier(0))
      }
    },
    HopperFault("a copy leads out of shared memory", .outOfBounds) { s in
      s.makeBarriers([1])
      s.bring {
        s.load(0, at: s.barrier(0), to: s.isFaulty ? s.shared + 4 * Setting.tileBytes : s.tile(1))
      }
    },
  ]

  static let clusters: [HopperFault] = [
    HopperFault(
      "a copy goes to a block that may not have made its barrier yet", .missingFence, .transactionBarrier,
      clusterSize: 2
    ) {
      s in
      s.makeBarriers([1])
      if !s.isFaulty { s.k.clusterBarrier() }
      s.bring {
        s.k.if(s.k.special(.clusterRank) .== 0) {
          let zero = s.k.constant(0, S32.self)
          s.k.copy(
            s.map, [zero, zero], to: s.tile(0), barrier: s.barrier(0),
            multicast: s.k.halves(s.k.constant(3, U32.self)).low)
        }
      }
      s.product(s.k.accumulators(32))
      s.k.clusterBarrier()
    },
    HopperFault("a copy goes to a block that the cluster does not have", .undefined, clusterSize: 2) { s in
      s.makeBarriers([1])
      s.k.clusterBarrier()
      s.bring {
        s.k.if(s.k.special(.clusterRank) .== 0) {
          let zero = s.k.constant(0, S32.self)
          s.k.copy(
            s.map, [zero, zero], to: s.tile(0), barrier: s.barrier(0),
            multicast: s.k.halves(s.k.constant(s.isFaulty ? 6 : 3, U32.self)).low)
        }
      }
      s.k.clusterBarrier()
    },
    HopperFault(
      "a block ends while another may still send to it", .undefined, .unfinishedCopy, .transactionBarrier,
      needsLuck: true,
      clusterSize: 2
    ) { s in
      s.makeBarriers([1])
      s.k.clusterBarrier()
      let rank = s.k.special(.clusterRank)
      if s.isFaulty { s.k.if(rank .== 1) { s.k.exit() } }
      s.k.if(s.isFirst) { s.k.arrive(transactionBarrier: s.barrier(0), expecting: Setting.tileBytes) }
      s.k.if((rank .== 0) & s.isFirst) {
        let zero = s.k.constant(0, S32.self)
        s.k.copy(
          s.map, [zero, zero], to: s.tile(0), barrier: s.barrier(0),
          multicast: s.k.halves(s.k.constant(3, U32.self)).low)
      }
      s.ring(0, as: .consumer).wait()
      if !s.isFaulty { s.k.clusterBarrier() }
    },
    HopperFault("a warp waits for its cluster without having arrived", .barrier, clusterSize: 2) { s in
      if !s.isFaulty { s.k.clusterArrive() }
      s.k.clusterWait()
    },
  ]
}
