// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/vk-firkin/vk-firkin/test/images"
)

// imageServer is the registries of the stories: one that behaves, one that wants a
// password, one that never answers, one that sends damaged blobs.
type imageServer struct {
	// Address is the good registry's.
	Address string
	// Busybox and the others are references to pull.
	Busybox, Private, Hanging, WrongArchitecture, Corrupt string
	// PrivateAddress, User and Password open Private.
	PrivateAddress, User, Password string

	registries []*images.Registry
}

func startImages(ctx context.Context, dir string) (*imageServer, error) {
	s := &imageServer{User: "reader", Password: "open sesame"}
	busybox, err := images.Busybox(ctx, filepath.Join(dir, "images"))
	if err != nil {
		return nil, err
	}
	foreign, err := images.Small("s390x")
	if err != nil {
		return nil, err
	}
	for _, r := range []struct {
		options images.RegistryOptions
		name    string
		image   v1.Image
		ref     *string
		address *string
		fault   images.Action
	}{
		{name: "busybox:1", image: busybox, ref: &s.Busybox, address: &s.Address},
		{options: images.RegistryOptions{User: s.User, Password: s.Password}, name: "private:1", image: busybox, ref: &s.Private, address: &s.PrivateAddress},
		{name: "hanging:1", image: busybox, ref: &s.Hanging, fault: images.Action{Hang: true}},
		{name: "corrupt:1", image: busybox, ref: &s.Corrupt, fault: images.Action{Corrupt: true}},
	} {
		registry, err := images.StartRegistry(r.options)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.registries = append(s.registries, registry)
		// Each has content of its own: an image that is on the node already is not asked
		// for again.
		unique, err := distinct(r.image, r.name)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		if *r.ref, err = registry.Push(r.name, unique); err != nil {
			return nil, errors.Join(err, s.close())
		}
		if r.address != nil {
			*r.address = registry.Addr()
		}
		switch {
		case r.fault.Corrupt:
			registry.SetFault(images.OnBlobs(r.fault))
		case r.fault.Hang:
			registry.SetFault(images.OnAll(r.fault))
		}
	}
	s.WrongArchitecture, err = s.registries[0].Push("foreign:1", foreign)
	return s, err
}

// distinct adds a file to an image.
func distinct(base v1.Image, name string) (v1.Image, error) {
	layer, err := images.Layer(images.File("image-name", 0o644, name))
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(base, layer)
}

// Addresses are all registries, for the nodes to speak plain HTTP to.
func (s *imageServer) Addresses() []string {
	var all []string
	for _, r := range s.registries {
		all = append(all, r.Addr())
	}
	return all
}

// Stop ends the registries.
func (s *imageServer) Stop() {
	if s != nil {
		_ = s.close() // they are in this process, which ends
	}
}

func (s *imageServer) close() error {
	var errs []error
	for _, r := range s.registries {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}
