// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package approver

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
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
	// soon and late are how often a request that waits is looked at, at first and at last.
	soon = time.Second
	late = 5 * time.Minute
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
	// Person: for Wait, a person should decide.
	Person bool
	// Node, for Approve, is who is to be remembered, and Joined as what.
	Node   string
	Joined Joined
}

// Policy is what may be approved beside what is fixed.
type Policy struct {
	// JoinGroup is the group of the tokens that nodes join with; empty: DefaultJoinGroup.
	JoinGroup string
	// Networks are where nodes have their addresses; empty means anywhere.
	Networks []netip.Prefix
	// Reserved are addresses that no node may have a certificate for: the API server's. Those that the
	// cluster names are added for each decision.
	Reserved []netip.Addr
	// ReservedNames are DNS names that no node may have, in any case: those by which the API
	// server, or anything else that clients trust the cluster's authority for, is reached.
	ReservedNames []string
}

func deny(format string, args ...any) Decision {
	return Decision{Verdict: Deny, Message: fmt.Sprintf(format, args...)}
}

// wait looks again after a quarter of the request's age: who stays, and who floods, costs little.
func wait(age time.Duration, format string, args ...any) Decision {
	return Decision{Verdict: Wait, Message: fmt.Sprintf(format, args...), After: min(max(age/4, soon), late)}
}

// ask waits for a person.
func ask(age time.Duration, format string, args ...any) Decision {
	d := wait(age, format, args...)
	d.Person = true
	return d
}

// Decide looks at a request and at the cluster.
func (p Policy) Decide(csr *certificatesv1.CertificateSigningRequest, c Cluster, now time.Time) Decision {
	if len(csr.Status.Conditions) > 0 || len(csr.Status.Certificate) > 0 {
		return Decision{}
	}
	switch csr.Spec.SignerName {
	case certificatesv1.KubeletServingSignerName:
		return p.serving(csr, c, now)
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		return p.client(csr, c, now)
	}
	return Decision{}
}

// serving decides about the certificate of a kubelet API.
func (p Policy) serving(csr *certificatesv1.CertificateSigningRequest, c Cluster, now time.Time) Decision {
	name, ok := strings.CutPrefix(csr.Spec.Username, userPrefix)
	if !ok || !slices.Contains(csr.Spec.Groups, nodesGroup) {
		return Decision{} // no node's
	}
	node, age := find(c.Nodes, name), now.Sub(csr.CreationTimestamp.Time)
	settled := age > settling
	if node == nil {
		return wait(age, "there is no Node %s", name)
	}
	if !ours(node) {
		if node.Status.NodeInfo.ContainerRuntimeVersion == "" && !settled {
			return wait(age, "Node %s has no status yet", name)
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
	if len(request.IPAddresses) > maxAddresses {
		return deny("a serving certificate is for %d addresses at most", maxAddresses)
	}
	addresses := []netip.Addr{}
	var disputed *Decision // what a person may approve is nothing that would be denied
	for _, ip := range request.IPAddresses {
		address, err := p.address(ip, node, c)
		switch {
		case err != nil && !settled && errors.Is(err, errNotOfNode):
			return wait(age, "%s: %v", address, err)
		case errors.Is(err, errDisputed):
			if disputed == nil {
				d := ask(age, "%s: %v: when node %s is who should have it, approve by hand (kubectl certificate approve %s)", address, err, name, csr.Name)
				disputed = &d
			}
		case err != nil:
			return deny("%s: %v", address, err)
		}
		addresses = append(addresses, address)
	}
	if disputed != nil {
		return *disputed
	}
	return Decision{
		Verdict: Approve, Message: fmt.Sprintf("asked for by node %s for its own name and addresses", name),
		Node: name, Joined: Joined{Addresses: addresses, AddressesSince: now.UTC().Truncate(time.Second)},
	}
}

var (
	errNotOfNode = errors.New("the Node does not have this address")
	// errDisputed: it may be the node's. A denial would let any node keep another one from its renewal.
	errDisputed = errors.New("not this node's alone")
)

// address checks one that a certificate is to be for.
func (p Policy) address(ip net.IP, node *corev1.Node, c Cluster) (netip.Addr, error) {
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
		return address, errors.New("the API server's own: a node on its host needs --node-ip, or files with --tls-cert-file")
	}
	service, own := serviceAt(c.Services, address)
	if own {
		return address, fmt.Errorf("the address of Service %s", service)
	}
	if len(p.Networks) > 0 && !slices.ContainsFunc(p.Networks, func(n netip.Prefix) bool { return n.Contains(address) }) {
		return address, errors.New("not in the networks of nodes, see --node-networks of vk-firkin controller")
	}
	// Who had a certificate for it before goes on; else nobody knows whose it is.
	had := func(node string) bool { return slices.Contains(c.Joined[node].Addresses, address) }
	for i := range c.Nodes {
		other := c.Nodes[i].Name
		if other != node.Name && has(&c.Nodes[i], address) && (had(other) || !had(node.Name)) {
			return address, fmt.Errorf("%w: also an address of Node %s, which is to be deleted when it is gone", errDisputed, other)
		}
	}
	if had(node.Name) {
		return address, nil
	}
	for _, other := range slices.Sorted(maps.Keys(c.Joined)) { // a Node that is there says itself which it has now
		if n := find(c.Nodes, other); had(other) && (n == nil || len(n.Status.Addresses) == 0) {
			return address, fmt.Errorf("%w: node %s had a certificate for it, whose Node is not there or has no addresses", errDisputed, other)
		}
	}
	if service != "" {
		return address, fmt.Errorf("%w: Service %s is reached by it from outside", errDisputed, service)
	}
	return address, nil
}

// client decides about a node's first certificate.
func (p Policy) client(csr *certificatesv1.CertificateSigningRequest, c Cluster, now time.Time) Decision {
	if !p.byToken(csr) {
		return Decision{} // a renewal, or a token of others
	}
	group, age := p.joinGroup(), now.Sub(csr.CreationTimestamp.Time)
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
	// Who has the key already gets no more by it. For another one, the name must never have been anybody's: the
	// first may still have its certificate, and renew it, whatever became of its Node.
	key := keyOf(request)
	before, known := c.Joined[name]
	const byHand = "when this is the host that should have the name, approve by hand (kubectl certificate approve %s); when not, deny it and revoke its token"
	switch {
	case known && before.Key != key:
		return ask(age, "node %s is known already, with another key: "+byHand, name, csr.Name)
	case find(c.Nodes, name) != nil:
		return ask(age, "Node %s exists already: "+byHand, name, csr.Name)
	case slices.ContainsFunc(c.Ledgers, func(l v1alpha1.NodeLedger) bool { return l.Name == name }):
		return ask(age, "the NodeLedger of a node %s exists already: "+byHand, name, csr.Name)
	case !known && len(c.Joined) >= maxJoined:
		return ask(age, "%v (ConfigMap %s; %s), or approve by hand, which is not remembered then (kubectl certificate approve %s)", errFull, JoinedName, c.dispensable(), csr.Name)
	}
	return Decision{
		Verdict: Approve, Message: fmt.Sprintf("node %s joins with a token of %s", name, group),
		Node: name, Joined: Joined{Key: key, Since: now.UTC().Truncate(time.Second)},
	}
}

func (p Policy) joinGroup() string { return cmp.Or(p.JoinGroup, DefaultJoinGroup) }

// byToken tells requests of who joins.
func (p Policy) byToken(csr *certificatesv1.CertificateSigningRequest) bool {
	return strings.HasPrefix(csr.Spec.Username, bootstrapPrefix) && slices.Contains(csr.Spec.Groups, p.joinGroup())
}

// approval is what a person has approved a request by; nil: nobody has.
func approval(csr *certificatesv1.CertificateSigningRequest) *certificatesv1.CertificateSigningRequestCondition {
	i := slices.IndexFunc(csr.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool {
		return c.Type == certificatesv1.CertificateApproved && c.Reason != Reason
	})
	if i < 0 {
		return nil
	}
	return &csr.Status.Conditions[i]
}

// byHand is whose request a person has approved, and as what the name is known from then on; empty: it is none of ours.
func (p Policy) byHand(csr *certificatesv1.CertificateSigningRequest, c Cluster, now time.Time) (string, Joined) {
	approved := approval(csr)
	if approved == nil {
		return "", Joined{}
	}
	request, err := parse(csr)
	if err != nil {
		return "", Joined{}
	}
	name, ok := strings.CutPrefix(request.Subject.CommonName, userPrefix)
	if !ok || len(validation.IsDNS1123Subdomain(name)) > 0 {
		return "", Joined{}
	}
	// When it was approved, and not when it is looked at: after a restart all are looked at again, in any order. The API server
	// sets the time of the transition; that of the update is kubectl's, by the person's clock.
	at := approved.LastTransitionTime.Time
	if at.IsZero() {
		at = approved.LastUpdateTime.Time
	}
	if at.IsZero() || at.After(now) {
		at = now
	}
	at = at.UTC().Truncate(time.Second)
	switch csr.Spec.SignerName {
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		if p.byToken(csr) {
			return name, Joined{Key: keyOf(request), Since: at}
		}
	case certificatesv1.KubeletServingSignerName:
		node := find(c.Nodes, name)
		if csr.Spec.Username != userPrefix+name || !slices.Contains(csr.Spec.Groups, nodesGroup) || node == nil || !ours(node) ||
			len(request.IPAddresses) > maxAddresses {
			return "", Joined{}
		}
		// A node makes a new key and a new request every 15 minutes (client-go's certificate manager), so what was approved may
		// be used by nobody: that it may have the addresses is true of the next one too. Those that it no longer has are not given.
		var addresses []netip.Addr
		for _, ip := range request.IPAddresses {
			if address, ok := netip.AddrFromSlice(ip); ok && has(node, address.Unmap()) {
				addresses = append(addresses, address.Unmap())
			}
		}
		if len(addresses) > 0 {
			return name, Joined{Addresses: addresses, AddressesSince: at}
		}
	}
	return "", Joined{}
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
