// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// UpdateContainer implements agentv1connect.ContainerServiceHandler.
func (cs *containers) UpdateContainer(ctx context.Context, req *connect.Request[agentv1.UpdateContainerRequest]) (*connect.Response[agentv1.UpdateContainerResponse], error) {
	resources, err := resourcesOf(req.Msg.GetResources())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	c, err := cs.get(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	// With lifecycle held it is not removed meanwhile, and updates come one after the other.
	c.lifecycle.Lock()
	defer c.lifecycle.Unlock()
	c.mu.Lock()
	run, state := c.run, c.state
	c.mu.Unlock()
	if run == nil || state == agentv1.ContainerState_CONTAINER_STATE_EXITED {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("container %q has exited", c.id))
	}
	if err := run.Update(context.WithoutCancel(ctx), resources); err != nil {
		return nil, runtimeError(fmt.Sprintf("update container %q", c.id), err)
	}
	return connect.NewResponse(&agentv1.UpdateContainerResponse{}), nil
}
