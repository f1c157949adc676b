// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// Content of volumes is read again this often, the kubelet's order of magnitude; the
// spread keeps the pods of a node from asking all at once.
const (
	refreshEvery  = 60 * time.Second
	refreshSpread = 30 * time.Second
)

// volumeKeeper makes a pod's volumes in its machine and keeps their content up to date.
type volumeKeeper struct {
	env *environment
	log *slog.Logger

	mu     sync.Mutex
	tokens tokenCache                   // guarded by mu
	sent   map[string][sha256.Size]byte // guarded by mu; digest of what a volume holds
}

// put makes a volume and writes its content. It may be repeated.
func (k *volumeKeeper) put(ctx context.Context, g *Guest, pod *corev1.Pod, v *corev1.Volume) error {
	if _, err := g.Volumes.PutVolume(ctx, connect.NewRequest(volumeSpec(pod, v))); err != nil {
		return fmt.Errorf("make volume %q: %w", v.Name, err)
	}
	if !hasContent(v) {
		return nil
	}
	return k.write(ctx, g, pod, v)
}

// write brings a volume's files up to date when they changed.
func (k *volumeKeeper) write(ctx context.Context, g *Guest, pod *corev1.Pod, v *corev1.Volume) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	files, err := k.env.content.content(ctx, pod, v, k.tokens)
	if err != nil {
		return err
	}
	sum := digest(files)
	if have, ok := k.sent[v.Name]; ok && have == sum {
		return nil
	}
	if _, err := g.Volumes.WriteFiles(ctx, connect.NewRequest(&agentv1.WriteFilesRequest{Volume: v.Name, Files: files})); err != nil {
		return fmt.Errorf("write files of volume %q: %w", v.Name, err)
	}
	k.sent[v.Name] = sum
	return nil
}

// refresh keeps the volumes up to date until the hold ends.
func (k *volumeKeeper) refresh(h *machineHold, pod func() *corev1.Pod) {
	any := false
	for i := range pod().Spec.Volumes {
		any = any || hasContent(&pod().Spec.Volumes[i])
	}
	if !any {
		return
	}
	for sleep(h.ctx, refreshEvery+rand.N(refreshSpread)) { //nolint:gosec // spreads load, guards nothing
		p := pod()
		ctx, cancel := context.WithTimeout(h.ctx, prepareTimeout)
		for i := range p.Spec.Volumes {
			v := &p.Spec.Volumes[i]
			if !hasContent(v) {
				continue
			}
			if err := k.again(ctx, h, p, v); err != nil && h.ctx.Err() == nil {
				k.log.Warn("Volume could not be refreshed", "volume", v.Name, "err", err)
			}
		}
		cancel()
	}
}

func (k *volumeKeeper) again(ctx context.Context, h *machineHold, pod *corev1.Pod, v *corev1.Volume) error {
	g, err := h.lease.Guest(ctx)
	if err != nil {
		return fmt.Errorf("reach the machine's agent: %w", err)
	}
	return k.write(ctx, g, pod, v)
}

// digest is over everything of the files, in order.
func digest(files []*agentv1.File) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, f := range files {
		field(h, []byte(f.GetPath()))
		field(h, f.GetData())
		field(h, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, f.GetMode()), uint64(f.GetUid()))) //nolint:gosec // any number will do
	}
	h.Sum(sum[:0])
	return sum
}

func field(h hash.Hash, b []byte) {
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
	h.Write(b)
}
