// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/provider"
)

// fakeImages has every image unless told otherwise.
type fakeImages struct {
	mu     sync.Mutex
	config map[string]provider.ImageConfig
	fail   func(ref string) error
	stall  bool
	pins   map[types.UID][]string
	pulls  int
	// failPins is how many pins fail.
	failPins int
}

func (f *fakeImages) Pull(ctx context.Context, r provider.PullRequest) (provider.Image, error) {
	f.mu.Lock()
	fail, stall := f.fail, f.stall
	f.pulls++
	f.mu.Unlock()
	if stall {
		<-ctx.Done()
		return provider.Image{}, ctx.Err()
	}
	if fail != nil {
		if err := fail(r.Ref); err != nil {
			return provider.Image{}, err
		}
	}
	return f.Pin(ctx, r.Owner, digestOf(r.Ref))
}

func digestOf(ref string) string {
	return "sha256:" + strings.NewReplacer("/", "", ".", "", ":", "").Replace(ref)
}

func (f *fakeImages) Pin(_ context.Context, owner types.UID, digest string) (provider.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failPins > 0 {
		f.failPins--
		return provider.Image{}, errors.New("not here")
	}
	if !slices.Contains(f.pins[owner], digest) {
		f.pins[owner] = append(f.pins[owner], digest)
	}
	return provider.Image{Ref: digest, Digest: digest, ID: "example.test/image@" + digest, DiskPath: "/" + digest, Config: f.config[digest]}, nil
}

func (f *fakeImages) Unpin(owner types.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pins, owner)
}

func (f *fakeImages) pinned() []types.UID {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []types.UID
	for u := range f.pins {
		out = append(out, u)
	}
	return out
}
