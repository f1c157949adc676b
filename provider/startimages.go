// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/warmpool"
)

// pull gets one image, beside the loop.
func (w *worker) pull(key imageKey) {
	img := w.s.images[key]
	img.pulling = true
	pod, user := w.s.pod, firstUser(w.s.plan, key)
	var late []warmpool.SlotImage
	if w.s.plan.template != nil && slices.Contains(w.s.plan.late, key) && w.hold != nil {
		late = w.hold.lease.Images()
	}
	w.acts.Go(func() {
		var got *Image
		var err error
		if late != nil {
			got, err = w.env.lateImage(w.start, pod.UID, key, late)
		} else {
			got, err = w.env.puller.pull(w.start, pod, key, user)
		}
		w.post(func(s *state) {
			img.pulling = false
			switch {
			case err == nil:
				*img = imageState{image: got}
				w.resolveImages()
				w.dirty = true
			case w.start.Err() == nil:
				w.log.Info("Image could not be pulled", "image", key.ref, "err", err)
				w.env.puller.failed(s.pod, key, user, img, err, time.Now())
			}
		})
	})
}

// resolveImages takes into the plan what only the images know.
func (w *worker) resolveImages() {
	all := true
	for i := range w.s.plan.containers {
		c := &w.s.plan.containers[i]
		if img := w.s.images[c.image].image; img != nil {
			c.stopSignal = stopSignalOf(c.spec, img)
		} else if c.kind != kindEphemeral {
			all = false
		}
	}
	if all && w.mark.imaged.IsZero() {
		w.mark.imaged = time.Now()
		w.mark.observe(PhaseImage, w.mark.imaged.Sub(w.mark.began))
	}
}

// leasedImages are the pod's images as the machine of its template brought them, pinned
// for the pod. Nobody is asked but the node's own store, whatever the pull policy:
// they were pulled when the template was built. When that fails the machine is given
// back.
func (e *environment) leasedImages(ctx context.Context, req MachineRequest, keys []imageKey, lease Lease) (map[imageKey]*Image, error) {
	got, err := e.pinLeased(ctx, req.PodUID, keys, lease.Images())
	if err == nil {
		return got, nil
	}
	err = fmt.Errorf("take the images of machine %q: %w", lease.MachineID(), err)
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	for failures := 1; ; failures++ {
		rerr := lease.Release(rctx, 0)
		if rerr == nil || !sleep(rctx, retryDelay(failures, releaseRetryFirst, releaseRetryMax)) {
			return nil, errors.Join(err, rerr)
		}
	}
}

func (e *environment) pinLeased(ctx context.Context, owner types.UID, keys []imageKey, slots []warmpool.SlotImage) (map[imageKey]*Image, error) {
	out := map[imageKey]*Image{}
	for _, key := range keys {
		slot, ok := slotImage(slots, key.ref)
		if !ok {
			return nil, fmt.Errorf("it does not have image %q", key.ref)
		}
		img, err := e.images.Pin(ctx, owner, slot.Digest)
		if err != nil {
			return nil, err
		}
		img.Ref, img.ID, img.Present = key.ref, imageID(key.ref, slot.Digest), true
		out[key] = &img
	}
	return out, nil
}

// lateImage is the image of an ephemeral container in a machine of a template: one of those
// that the template brought, or none.
func (e *environment) lateImage(ctx context.Context, owner types.UID, key imageKey, slots []warmpool.SlotImage) (*Image, error) {
	if _, ok := slotImage(slots, key.ref); !ok {
		return &Image{Ref: key.ref, ID: key.ref}, nil // in no slot: unfit says so
	}
	got, err := e.pinLeased(ctx, owner, []imageKey{key}, slots)
	return got[key], err
}
