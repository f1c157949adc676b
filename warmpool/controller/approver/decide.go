// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package approver

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	// DefaultJoinGroup is the group of the tokens that vk-firkin's nodes join with.
	DefaultJoinGroup = "system:bootstrappers:vk-firkin"

	nodesGroup      = "system:nodes"
	userPrefix      = "system:node:"
	bootstrapPrefix = "system:bootstrap:"
	// runtimePrefix begins what our nodes show as their container runtime.
	runtimePrefix = "firkin://"
)

const (
	// settling is how long a request may be ahead of its Node: both are made when a node starts.
	settling = time.Minute
	// soon and later are when to look again, within that time and after it.
	soon  = time.Second
	later = 15 * time.Second
)

// Verdict is what becomes of a request.
type Verdict int

// The verdicts.
const (
	// Ignore: it is decided already, or others decide it.
	Ignore Verdict = iota
	// Wait: it cannot be decided yet.
	Wait
	// Approve it.
	Approve
	// Deny it.
	Deny
)

func (v Verdict) String() string {
	return [...]string{"Ignore", "Wait", "Approve", "Deny"}[v]
}

// Decision is a verdict and why, for people.
type Decision struct {
	Verdict Verdict
	Message string
	// After is when to look again, for Wait.
	After time.Duration
}

// Policy is what may be approved beside what is fixed.
type Policy struct {
	// JoinGroup is the group of the tokens that nodes join with; empty: DefaultJoinGroup.
	JoinGroup string
	// Networks are where nodes have their addresses; empty means anywhere.
	Networks []netip.Prefix
	// Reserved are addresses that no node may have a certificate for: the API server's.
	Reserved []netip.Addr
	// ReservedNames are DNS names that no node may have, in any case: those by which the API
	// server, or anything else that clients trust the cluster's authority for, is reached.
	ReservedNames []string
}

func deny(format string, args ...any) Decision {
	return Decision{Verdict: Deny, Message: fmt.Sprintf(format, args...)}
}

// Decide looks at a request and at all Nodes.
func (p Policy) Decide(csr *certificatesv1.CertificateSigningRequest, nodes []corev1.Node, now time.Time) Decision {
	if len(csr.Status.Conditions) > 0 || len(csr.Status.Certificate) > 0 {
		return Decision{}
	}
	switch csr.Spec.SignerName {
	case certificatesv1.KubeletServingSignerName:
		return p.serving(csr, nodes, now)
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		return p.client(csr, nodes)
	}
	return Decision{}
}

// serving decides about the certificate of a kubelet API.
func (p Policy) serving(csr *certificatesv1.CertificateSigningRequest, nodes []corev1.Node, now time.Time) Decision {
	name, ok := strings.CutPrefix(csr.Spec.Username, userPrefix)
	if !ok || !slices.Contains(csr.Spec.Groups, nodesGroup) {
		return Decision{} // no node's
	}
	node := find(nodes, name)
	settled := now.Sub(csr.CreationTimestamp.Time) > settling
	if node == nil {
		return Decision{Verdict: Wait, Message: fmt.Sprintf("there is no Node %s", name), After: pause(settled)}
	}
	if !ours(node) {
		if node.Status.NodeInfo.ContainerRuntimeVersion == "" && !settled {
			return Decision{Verdict: Wait, Message: fmt.Sprintf("Node %s has no status yet", name), After: soon}
		}
		return Decision{} // another kubelet's, for its own approver
	}
	request, err := parse(csr)
	if err != nil {
		return deny("%v", err)
	}
	if err := checkSubject(request, name); err != nil {
		return deny("%v", err)
	}
	if err := checkUsages(csr.Spec.Usages, certificatesv1.UsageServerAuth); err != nil {
		return deny("%v", err)
	}
	if len(request.EmailAddresses) > 0 || len(request.URIs) > 0 {
		return deny("a serving certificate has no mail addresses and no URIs")
	}
	if len(request.DNSNames)+len(request.IPAddresses) == 0 {
		return deny("a serving certificate is for a name or an address, this one for none")
	}
	// Addresses of the type Hostname and the like are what a node says of itself: they could be a service's.
	for _, dns := range request.DNSNames {
		if dns != name {
			return deny("node %s may have a certificate for its own name, not for %q", name, dns)
		}
		if p.reserved(dns) {
			return deny("%q is a name of the cluster's own", dns)
		}
	}
	for _, ip := range request.IPAddresses {
		address, err := p.address(ip, node, nodes)
		switch {
		case err != nil && !settled && errors.Is(err, errNotOfNode):
			return Decision{Verdict: Wait, Message: fmt.Sprintf("%s: %v", address, err), After: soon}
		case err != nil:
			return deny("%s: %v", address, err)
		}
	}
	return Decision{Verdict: Approve, Message: fmt.Sprintf("asked for by node %s for its own name and addresses", name)}
}

var errNotOfNode = errors.New("the Node does not have this address")

// address checks one that a certificate is to be for.
func (p Policy) address(ip net.IP, node *corev1.Node, nodes []corev1.Node) (netip.Addr, error) {
	address, ok := netip.AddrFromSlice(ip)
	address = address.Unmap()
	if !ok || address.IsUnspecified() || address.IsMulticast() {
		return address, errors.New("not an address of a host")
	}
	if !has(node, address) {
		return address, fmt.Errorf("%w; see kubectl get node %s -o wide, and --node-ip of vk-firkin node", errNotOfNode, node.Name)
	}
	// A loopback address is the same for all and leads nowhere else: only a control plane on the
	// node's own host, as in development, reaches a node by it.
	if address.IsLoopback() {
		return address, nil
	}
	if slices.Contains(p.Reserved, address) {
		return address, errors.New("the API server's own")
	}
	if len(p.Networks) > 0 && !slices.ContainsFunc(p.Networks, func(n netip.Prefix) bool { return n.Contains(address) }) {
		return address, errors.New("not in the networks of nodes, see --node-networks of vk-firkin controller")
	}
	for i := range nodes {
		if nodes[i].Name != node.Name && has(&nodes[i], address) {
			return address, fmt.Errorf("also an address of Node %s: delete the one of them that is gone", nodes[i].Name)
		}
	}
	return address, nil
}

// client decides about a node's first certificate.
func (p Policy) client(csr *certificatesv1.CertificateSigningRequest, nodes []corev1.Node) Decision {
	group := cmp.Or(p.JoinGroup, DefaultJoinGroup)
	if !strings.HasPrefix(csr.Spec.Username, bootstrapPrefix) || !slices.Contains(csr.Spec.Groups, group) {
		return Decision{} // a renewal, or a token of others
	}
	request, err := parse(csr)
	if err != nil {
		return deny("%v", err)
	}
	name, ok := strings.CutPrefix(request.Subject.CommonName, userPrefix)
	if !ok {
		return deny("a token of %s is for certificates of nodes, not of %q", group, request.Subject.CommonName)
	}
	if err := checkSubject(request, name); err != nil {
		return deny("%v", err)
	}
	if err := checkUsages(csr.Spec.Usages, certificatesv1.UsageClientAuth); err != nil {
		return deny("%v", err)
	}
	if len(request.DNSNames)+len(request.IPAddresses)+len(request.EmailAddresses)+len(request.URIs) > 0 {
		return deny("a client certificate of a node has no further names")
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 || p.reserved(name) {
		return deny("%q cannot be a node's name", name)
	}
	if find(nodes, name) != nil {
		return Decision{Verdict: Wait, After: later, Message: fmt.Sprintf(
			"Node %s exists already: when it is gone or its certificate was lost, delete it (kubectl delete node %s) or approve by hand (kubectl certificate approve %s)", name, name, csr.Name)}
	}
	return Decision{Verdict: Approve, Message: fmt.Sprintf("node %s joins with a token of %s", name, group)}
}

// parse reads the request itself, whose content is the requester's.
func parse(csr *certificatesv1.CertificateSigningRequest) (*x509.CertificateRequest, error) {
	block, rest := pem.Decode(csr.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 {
		return nil, errors.New("not one PEM block of a certificate request")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("not a certificate request: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("not signed with its own key: %w", err)
	}
	return request, nil
}

// checkSubject wants a node's name and group, and nothing else.
func checkSubject(request *x509.CertificateRequest, node string) error {
	if request.Subject.CommonName != userPrefix+node || !slices.Equal(request.Subject.Organization, []string{nodesGroup}) {
		return fmt.Errorf("the request is for %q: want the name %s%s and the one organization %s", request.Subject, userPrefix, node, nodesGroup)
	}
	if len(request.Subject.Names) != 2 {
		return fmt.Errorf("the request is for %q: want no more than a name and an organization", request.Subject)
	}
	return nil
}

// checkUsages wants those of a kubelet: to sign, for RSA to encipher keys, and one end of TLS.
func checkUsages(usages []certificatesv1.KeyUsage, end certificatesv1.KeyUsage) error {
	rest := slices.DeleteFunc(slices.Clone(usages), func(u certificatesv1.KeyUsage) bool { return u == certificatesv1.UsageKeyEncipherment })
	slices.Sort(rest)
	want := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, end}
	slices.Sort(want)
	if !slices.Equal(rest, want) || len(usages)-len(rest) > 1 {
		return fmt.Errorf("usages are %q: want %q, and %q with an RSA key", usages, want, certificatesv1.UsageKeyEncipherment)
	}
	return nil
}

// reserved tells names by which clients look for the API server or for a service, and those that
// are addresses. A certificate for one would be believed by whoever trusts the cluster's authority.
func (p Policy) reserved(name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	for _, r := range p.ReservedNames {
		if name == strings.ToLower(strings.TrimSuffix(r, ".")) {
			return true
		}
	}
	switch name {
	case "localhost", "kubernetes", "kubernetes.default":
		return true
	}
	return strings.HasSuffix(name, ".svc") || strings.Contains(name, ".svc.") || strings.HasSuffix(name, ".localhost")
}

func find(nodes []corev1.Node, name string) *corev1.Node {
	i := slices.IndexFunc(nodes, func(n corev1.Node) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return &nodes[i]
}

// ours tells nodes of vk-firkin.
func ours(n *corev1.Node) bool {
	return strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, runtimePrefix)
}

func has(n *corev1.Node, address netip.Addr) bool {
	return slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			return false
		}
		parsed, err := netip.ParseAddr(a.Address)
		return err == nil && parsed.Unmap() == address
	})
}

func pause(settled bool) time.Duration {
	if settled {
		return later
	}
	return soon
}
