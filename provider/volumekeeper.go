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
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// defaultVolumeRefresh is how often the content of volumes is read again, the kubelet's
// order of magnitude. Half as much again at most keeps the pods of a node from asking all
// at once.
const defaultVolumeRefresh = time.Minute

// volumeKeeper makes a pod's volumes in its machine and keeps their content up to date.
type volumeKeeper struct {
	env *environment
	log *slog.Logger
	// shape is the machine's.
	shape vm.Shape

	mu      sync.Mutex
	volumes map[string]*keptVolume // guarded by mu
}

// keptVolume is one volume.
type keptVolume struct {
	mu     sync.Mutex         // held while the content is read and written
	tokens tokenCache         // guarded by mu
	sent   *[sha256.Size]byte // guarded by mu; digest of what the volume holds
	ahead  *fetchedContent    // guarded by mu; what was read before the machine came
}

// fetchedContent is what a volume is to hold.
type fetchedContent struct {
	done   chan struct{} // closed when the rest is there
	files  []*agentv1.File
	tokens tokenCache
	err    error
	at     time.Time
}

func newVolumeKeeper(env *environment, log *slog.Logger, shape vm.Shape) *volumeKeeper {
	return &volumeKeeper{env: env, log: log, shape: shape, volumes: map[string]*keptVolume{}}
}

func (k *volumeKeeper) volume(name string) *keptVolume {
	k.mu.Lock()
	defer k.mu.Unlock()
	v := k.volumes[name]
	if v == nil {
		v = &keptVolume{tokens: tokenCache{}}
		k.volumes[name] = v
	}
	return v
}

// prefetchTTL is how long content that was read ahead is still written: a machine that
// came later than that gets what the API server has then.
const prefetchTTL = 10 * time.Second

// prefetch prepares to read, side by side, what the pod's volumes and variables are made
// of; the function it returns does it, and is to be called at once. What fails is read
// again when it is needed, and said then.
func (k *volumeKeeper) prefetch(pod *corev1.Pod) func(context.Context) {
	var jobs []func(context.Context)
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !hasContent(v) {
			continue
		}
		f := &fetchedContent{done: make(chan struct{}), tokens: tokenCache{}}
		kept := k.volume(v.Name)
		kept.mu.Lock()
		kept.ahead = f
		kept.mu.Unlock()
		jobs = append(jobs, func(ctx context.Context) {
			defer close(f.done)
			f.files, f.err = k.env.content.content(ctx, pod, v, f.tokens)
			f.at = time.Now()
		})
	}
	for c := range containersOf(pod) {
		jobs = append(jobs, k.env.variables.prefetch(pod, c.Container)...)
	}
	return func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
		defer cancel()
		var wg sync.WaitGroup
		defer wg.Wait()
		for _, job := range jobs {
			wg.Go(func() { job(ctx) })
		}
	}
}

// put makes a volume and writes its content. It may be repeated.
func (k *volumeKeeper) put(ctx context.Context, g *Guest, pod *corev1.Pod, v *corev1.Volume) error {
	spec := volumeSpec(pod, v, k.shape)
	if spec == nil {
		return nil
	}
	if _, err := g.Volumes.PutVolume(ctx, connect.NewRequest(spec)); err != nil {
		return fmt.Errorf("make volume %q: %w", v.Name, err)
	}
	switch {
	case v.HostPath != nil:
		return k.env.copyHostPath(ctx, g, pod, v)
	case hasContent(v):
		return k.write(ctx, g, pod, v)
	}
	return nil
}

// write brings a volume's files up to date when they changed.
func (k *volumeKeeper) write(ctx context.Context, g *Guest, pod *corev1.Pod, v *corev1.Volume) error {
	kept := k.volume(v.Name)
	kept.mu.Lock()
	defer kept.mu.Unlock()
	files, err := k.read(ctx, pod, v, kept)
	if err != nil {
		return err
	}
	sum := digest(files)
	if kept.sent != nil && *kept.sent == sum {
		return nil
	}
	if _, err := g.Volumes.WriteFiles(ctx, connect.NewRequest(&agentv1.WriteFilesRequest{Volume: v.Name, Files: files})); err != nil {
		return fmt.Errorf("write files of volume %q: %w", v.Name, err)
	}
	kept.sent = &sum
	return nil
}

// read returns what was read ahead, once, or what the API server has. kept.mu is held.
func (k *volumeKeeper) read(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, kept *keptVolume) ([]*agentv1.File, error) {
	if f := kept.ahead; f != nil {
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("volume %q: %w", v.Name, ctx.Err())
		}
		kept.ahead = nil
		if f.err == nil {
			maps.Copy(kept.tokens, f.tokens)
			if time.Since(f.at) < prefetchTTL {
				return f.files, nil
			}
		}
	}
	return k.env.content.content(ctx, pod, v, kept.tokens)
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
	for sleep(h.ctx, k.env.volumeRefresh+rand.N(k.env.volumeRefresh/2+1)) { //nolint:gosec // spreads load, guards nothing
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
