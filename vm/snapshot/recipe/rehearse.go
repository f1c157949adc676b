// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package recipe

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// absentProgram is not in any image: its container is made, found not to have a program,
// and ends.
const absentProgram = "/.firkin/no-such-program"

// Rehearse makes, starts and removes a container of the image in a slot, so that all
// of the machine that the next one needs is in memory, and proves by it that the next
// one can be made. layer tells that the machine is a template's: the container has its
// layer below. It takes the container that waits, if one does, and leaves another: what
// is left beside that is warmth; pod and containers are as before.
//
// It may be called on a machine without pod's containers only. Errors are the agent's.
func Rehearse(ctx context.Context, client *guest.Client, opts Options, layer bool) error {
	if err := setupPod(ctx, client, opts); err != nil {
		return err
	}
	req := &agentv1.CreateContainerRequest{
		Id: ContainerPrefix + "rehearsal", ImageSlot: int32(opts.Slot), Args: []string{absentProgram}, Env: opts.Image.Env,
	}
	if layer && !opts.Host {
		req.LowerLayers = []string{Layer}
	}
	if _, err := client.Containers.CreateContainer(ctx, connect.NewRequest(req)); err != nil {
		return fmt.Errorf("rehearse: create a container: %w", err)
	}
	if _, err := client.Containers.StartContainer(ctx, connect.NewRequest(&agentv1.StartContainerRequest{Id: req.GetId()})); err != nil {
		return fmt.Errorf("rehearse: start a container: %w", err)
	}
	if _, err := client.Containers.RemoveContainer(ctx, connect.NewRequest(&agentv1.RemoveContainerRequest{Id: req.GetId()})); err != nil {
		return fmt.Errorf("rehearse: remove a container: %w", err)
	}
	if opts.Host {
		return nil
	}
	return prepareContainer(ctx, client, opts.Slot, layer)
}
