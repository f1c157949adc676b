// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/metrics"
	"github.com/vk-firkin/vk-firkin/vm/image"
)

// nodeImages lets pods pull from an image store: it remembers which pod holds which
// image, because a pod gives all of them back at once.
type nodeImages struct {
	store   *image.Store
	metrics *metrics.Metrics

	mu     sync.Mutex
	owners map[types.UID][]string // guarded by mu; digests
}

var _ provider.Images = (*nodeImages)(nil)

func newNodeImages(store *image.Store, m *metrics.Metrics) *nodeImages {
	return &nodeImages{store: store, metrics: m, owners: map[types.UID][]string{}}
}

// Pull is part of provider.Images.
func (n *nodeImages) Pull(ctx context.Context, req provider.PullRequest) (provider.Image, error) {
	pulled, present, err := n.pull(ctx, req, false)
	if err != nil {
		return provider.Image{}, err
	}
	img := nodeImage(pulled)
	img.Ref, img.Present = req.Ref, present
	return img, nil
}

// pull gets a container image, or an installation of macOS, and pins it for the owner.
// present: nothing was pulled.
func (n *nodeImages) pull(ctx context.Context, req provider.PullRequest, macOS bool) (pulled *image.Image, present bool, err error) {
	secrets := make([]image.Secret, 0, len(req.Secrets))
	for _, s := range req.Secrets {
		secrets = append(secrets, image.Secret{Type: s.Type, Data: s.Data})
	}
	keychain, err := image.KeychainFromSecrets(secrets...)
	if err != nil {
		return nil, false, err
	}
	policy := image.Policy(req.Policy)
	if policy == image.PullIfNotPresent {
		// Asked first without a registry, to be able to say that nothing was pulled.
		pulled, err = n.store.Pull(ctx, req.Ref, image.PullOptions{Policy: image.PullNever, Auth: keychain, MacOS: macOS})
		present = err == nil
	}
	if !present {
		pulled, err = n.store.Pull(ctx, req.Ref, image.PullOptions{Policy: policy, Auth: keychain, MacOS: macOS})
	}
	n.metrics.ImagePulled(present, err)
	if err != nil {
		return nil, false, imageError(err)
	}
	defer pulled.Release() // the owner's pin takes over
	if err := n.pin(req.Owner, pulled.Digest); err != nil {
		return nil, false, err
	}
	return pulled, present, nil
}

// Pin is part of provider.Images.
func (n *nodeImages) Pin(_ context.Context, owner types.UID, digest string) (provider.Image, error) {
	held, err := n.hold(owner, digest)
	if err != nil {
		return provider.Image{}, err
	}
	return nodeImage(held), nil
}

// hold pins an image that is here for the owner.
func (n *nodeImages) hold(owner types.UID, digest string) (*image.Image, error) {
	if err := n.pin(owner, digest); err != nil {
		return nil, err
	}
	held, err := n.store.Pin(digest, string(owner))
	if err != nil {
		return nil, imageError(err)
	}
	return held, nil
}

func (n *nodeImages) pin(owner types.UID, digest string) error {
	if _, err := n.store.Pin(digest, string(owner)); err != nil {
		return imageError(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Contains(n.owners[owner], digest) {
		n.owners[owner] = append(n.owners[owner], digest)
	}
	return nil
}

// shown are the images as the node's status has them: by digest in each of their
// repositories, then by the names they were asked by.
func (n *nodeImages) shown() []corev1.ContainerImage {
	list, err := n.store.List()
	if err != nil {
		return nil // the node says what it can
	}
	out := make([]corev1.ContainerImage, 0, len(list))
	for _, i := range list {
		out = append(out, corev1.ContainerImage{Names: imageNames(i.Refs, i.Digest), SizeBytes: i.SizeBytes})
	}
	return out
}

// imageNames are what an image may be asked by. It is pure.
func imageNames(refs []string, digest string) []string {
	var digests, tags []string
	for _, ref := range refs {
		repository, _, pinned := strings.Cut(ref, "@")
		if !pinned {
			tags = append(tags, ref)
			if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
				repository = ref[:i]
			}
		}
		if name := repository + "@" + digest; !slices.Contains(digests, name) {
			digests = append(digests, name)
		}
	}
	if len(refs) == 0 {
		return []string{digest}
	}
	return append(digests, tags...)
}

// Unpin is part of provider.Images.
func (n *nodeImages) Unpin(owner types.UID) {
	n.mu.Lock()
	digests := n.owners[owner]
	delete(n.owners, owner)
	n.mu.Unlock()
	for _, digest := range digests {
		n.store.Unpin(digest, string(owner))
	}
}

// imageError gives an error of the store the kind that pods tell apart.
func imageError(err error) error {
	switch {
	case errors.Is(err, image.ErrInvalidReference):
		return fmt.Errorf("%w: %w", provider.ErrImageInvalidName, err)
	case errors.Is(err, image.ErrNeverPull):
		return fmt.Errorf("%w: %w", provider.ErrImageNeverPull, err)
	}
	return err
}

func nodeImage(i *image.Image) provider.Image {
	id := i.RepoDigest
	if id == "" {
		id = i.Digest
	}
	return provider.Image{
		Ref:       i.Ref,
		Digest:    i.Digest,
		ID:        id,
		DiskPath:  i.DiskPath,
		SizeBytes: i.SizeBytes,
		Config: provider.ImageConfig{
			Entrypoint: i.Config.Entrypoint,
			Cmd:        i.Config.Cmd,
			Env:        i.Config.Env,
			WorkingDir: i.Config.WorkingDir,
			User:       i.Config.User,
			StopSignal: i.Config.StopSignal,
		},
	}
}
