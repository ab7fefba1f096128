// kafkajs cannot subscribe to a topic that does not exist, so they are made first.

async function withAdmin(nest, client, work) {
  const { Kafka } = await nest.load('kafkajs');
  const admin = new Kafka(client).admin();
  await admin.connect();
  try {
    return await work(admin);
  } finally {
    await admin.disconnect();
  }
}

export async function createTopics(nest, client, names, numPartitions = 1) {
  await withAdmin(nest, client, async (admin) => {
    const there = new Set(await admin.listTopics());
    const topics = names.filter((name) => !there.has(name)).map((topic) => ({ topic, numPartitions }));
    if (!topics.length) return;
    for (let tries = 1; ; tries += 1) {
      try {
        await admin.createTopics({ topics, waitForLeaders: false });
        break;
      } catch (error) {
        // A busy machine's only broker counts as gone for a moment, which is said as "replication factor".
        const passing = error.errors?.some(({ type }) => type === 'INVALID_REPLICATION_FACTOR');
        if (!passing || tries === 30) throw error;
        await new Promise((resolve) => setTimeout(resolve, 500));
      }
    }
    // Its own wait for leaders throws on a KRaft broker that is a moment behind.
    for (let tries = 0; tries < 100; tries += 1) {
      const found = await admin.fetchTopicMetadata({ topics: names }).catch(() => ({ topics: [] }));
      if (found.topics.length === names.length && found.topics.every((t) => t.partitions.length && t.partitions.every((p) => p.leader >= 0))) return;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    throw new Error(`topics without leaders: ${names}`);
  });
}

export async function deleteTopics(nest, client, topics) {
  await withAdmin(nest, client, (admin) => admin.deleteTopics({ topics }));
}
